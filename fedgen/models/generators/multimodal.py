"""A VAE whose conditions are encoded apart and may each be absent."""

from __future__ import annotations

from torch import Tensor

from fedgen.data.conditions import Conditions
from fedgen.models.generators.conditioning import FusedConditions
from fedgen.models.generators.vae import VAEGenerator


class MultimodalVAEGenerator(VAEGenerator):
    """`VAEGenerator` that sees each text encoder's embedding whole: vectors, and token sequences by attention pooling.

    In training each embedding of each sample is left out with probability ``generator.training.condition_dropout``,
    independently, so that any of them, or all, may be left out of sampling.
    """

    kind = "multimodal_vae"
    conditioned = True

    @classmethod
    def see(cls, conditions: Conditions | None) -> dict[str, Tensor]:
        """Return the embeddings as they are, by name."""
        return {} if conditions is None else dict(conditions.values)

    def condition_encoder(self) -> FusedConditions:
        """Return an encoder for each embedding."""
        shapes = {name: tuple(value.shape[1:]) for name, value in self.embeddings.items()}
        return FusedConditions(shapes, self.settings.embedding)
