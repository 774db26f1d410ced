"""fedgen: federated training of audio-to-text-conditioning adapters with synthetic token exchange."""

__version__ = "0.1.0"
