"""Whatever the lengths: every kind of generator fits, samples, is saved, loaded and sent."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from spaces import toy_space

from fedgen.data.targets import Conditions
from fedgen.data.tokens import TensorTokens
from fedgen.errors import CheckpointError
from fedgen.messages.samples import samples_from_record, samples_to_record
from fedgen.models.generators import KINDS
from fedgen.models.generators.bank import Bank
from fedgen.models.settings import UPSAMPLING, GeneratorSettings, GeneratorTraining, GranularitySettings
from fedgen.runs.checkpoint import load_bank, save_bank

NAMES = ["rain", "dog"]
CONDITIONS = Conditions({"clip": torch.eye(2), "t5": torch.randn(2, 3, 4)})
TRAINING = GeneratorTraining(epochs=2, validation=0.0)
SETTINGS = GeneratorSettings(width=16, latents=4, training=TRAINING, training_length=4, output_length=20)


def opened(settings: GeneratorSettings) -> Bank:
    """Return an unfitted bank; its codec is that of public sounds at the lengths of the settings."""
    space = toy_space((12, 5), lengths=settings.lengths)
    return Bank(settings, GranularitySettings(), NAMES, space, CONDITIONS)


def fitted(settings: GeneratorSettings) -> Bank:
    tokens = torch.randn(40, 12, 5, generator=torch.Generator().manual_seed(0))
    bank = opened(settings)
    bank.fit(TensorTokens(tokens, torch.arange(40) % 2), seed=0)
    return bank


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("upsampling", UPSAMPLING)
def test_samples_have_the_output_length_also_after_loading_and_sending(
    tmp_path: Path, upsampling: str, kind: str
) -> None:
    settings, every = replace(SETTINGS, kind=kind, upsampling=upsampling), torch.arange(5)
    bank = fitted(settings)
    samples = bank.sample({0: 3, 1: 2}, seed=1)
    tokens = samples.batch(every)
    assert tokens.shape == (5, 20, 5)
    assert tokens.isfinite().all()

    save_bank(tmp_path, "vae", 0, bank, {"round": 1})
    loaded = opened(settings)
    load_bank(tmp_path, "vae_node0", loaded, NAMES, {})
    assert torch.equal(loaded.sample({0: 3, 1: 2}, seed=1).batch(every), tokens)
    assert loaded.codec.encode(torch.zeros(1, 12, 5)).shape == (1, loaded.codec.size)  # checkpoints go on training

    received = samples_from_record(samples_to_record(samples), loaded.codec, [0, 1], limit=5)
    silent = samples.codec.decode(samples.latents), received.codec.decode(received.latents)
    torch.testing.assert_close(*silent, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_checkpoint_serves_every_output_length_and_up_sampling(tmp_path: Path, kind: str) -> None:
    """What was trained knows nothing of them: the latents are the same."""
    settings = replace(SETTINGS, kind=kind)
    bank = fitted(settings)
    save_bank(tmp_path, "vae", 0, bank, {"round": 1})
    drawn = bank.sample({0: 3, 1: 2}, seed=1)
    for output, upsampling in ((None, "cubic"), (4, "linear"), (30, "learned")):
        loaded = opened(replace(settings, output_length=output, upsampling=upsampling))
        load_bank(tmp_path, "vae_node0", loaded, NAMES, {})
        samples = loaded.sample({0: 3, 1: 2}, seed=1)
        assert samples.batch(torch.arange(5)).shape == (5, output or 12, 5)
        torch.testing.assert_close(samples.latents, drawn.latents, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("check", ["strict", "warn"])
def test_a_checkpoint_of_another_training_length_is_refused_by_its_key(tmp_path: Path, check: str) -> None:
    save_bank(tmp_path, "vae", 0, fitted(SETTINGS), {"round": 1})
    other = opened(replace(SETTINGS, training_length=6))
    with pytest.raises(CheckpointError, match=r"generator\.training_length is 4, this run has 6"):
        load_bank(tmp_path, "vae_node0", other, NAMES, {}, check=check)
    assert other.generators == {}
