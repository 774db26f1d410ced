"""Whatever the lengths and the codec: every kind of generator fits, samples, is saved, loaded and sent."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedgen.data.conditions import Conditions
from fedgen.data.tokens import TensorTokens
from fedgen.errors import ConfigError
from fedgen.exchange.checkpoint import load_bank, save_bank
from fedgen.exchange.payload import samples_from_record, samples_to_record
from fedgen.models.codec import CodecSettings
from fedgen.models.generators import KINDS, GeneratorSettings, GeneratorTraining
from fedgen.training.bank import Bank
from fedgen.training.granularity import GranularitySettings

NAMES = ["rain", "dog"]
CONDITIONS = Conditions({"clip": torch.eye(2), "t5": torch.randn(2, 3, 4)})
TRAINING = GeneratorTraining(epochs=2, validation=0.0)
TUCKER = GeneratorSettings(
    width=16, latents=4, codec=CodecSettings(4, 4, 6), training=TRAINING, training_length=4, output_length=20
)
FLAT = replace(TUCKER, codec=CodecSettings(name="flat"), upsampling="learned")


def fitted(settings: GeneratorSettings) -> Bank:
    tokens = torch.randn(40, 12, 5, generator=torch.Generator().manual_seed(0))
    bank = Bank(settings, GranularitySettings(), NAMES, CONDITIONS)
    bank.fit(TensorTokens(tokens, torch.arange(40) % 2), seed=0)
    return bank


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("settings", [TUCKER, FLAT], ids=lambda settings: settings.codec.name)
def test_samples_have_the_output_length_also_after_loading_and_sending(
    tmp_path: Path, settings: GeneratorSettings, kind: str
) -> None:
    settings, every = replace(settings, kind=kind), torch.arange(5)
    bank = fitted(settings)
    samples = bank.sample({0: 3, 1: 2}, seed=1)
    tokens = samples.batch(every)
    assert tokens.shape == (5, 20, 5)
    assert tokens.isfinite().all()

    save_bank(tmp_path, "vae", 0, bank, {"round": 1})
    loaded = Bank(settings, GranularitySettings(), NAMES, CONDITIONS)
    load_bank(tmp_path, "vae", 0, loaded, NAMES, {})
    assert torch.equal(loaded.sample({0: 3, 1: 2}, seed=1).batch(every), tokens)
    assert loaded.codec is not None
    assert loaded.codec.encode(torch.zeros(1, 12, 5)).shape == (1, loaded.codec.size)  # checkpoints go on training

    received = samples_from_record(samples_to_record(samples), (20, 5), [0, 1], limit=5)
    silent = samples.codec.decode(samples.latents), received.codec.decode(received.latents)
    torch.testing.assert_close(*silent, atol=0.1, rtol=0.1)


def test_lengths_that_the_codec_cannot_do_are_found_with_the_settings() -> None:
    with pytest.raises(ConfigError, match=r"generator\.codec\.name=flat needs a generator\.training_length"):
        replace(FLAT, training_length=None)
