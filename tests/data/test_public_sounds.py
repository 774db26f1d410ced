import numpy as np
import pytest
import torch

from fedgen.data.encoders import open_encoder
from fedgen.data.public import PublicTokens
from fedgen.data.settings import EncoderSettings
from fedgen.data.sounds import SAMPLES, SOUNDS, recipe_sound


@pytest.fixture(scope="module")
def public() -> PublicTokens:
    return PublicTokens(open_encoder(EncoderSettings(stride=16)), classes=12, clips=4)


@pytest.mark.parametrize("label", range(24))
def test_recipes_are_audible_seeded_and_different(label: int) -> None:
    clips = [recipe_sound(label, take) for take in range(3)]
    for clip in clips:
        assert (clip.dtype, clip.shape) == (np.float32, (SAMPLES,))
        assert np.isfinite(clip).all()
        assert 1e-4 < np.sqrt(np.mean(clip**2)) < 1
    assert len({clip.tobytes() for clip in clips}) == 3
    assert np.array_equal(clips[1], recipe_sound(label, 1))


def test_classes_differ_by_more_than_their_clips(public: PublicTokens) -> None:
    tokens = public.batch(torch.arange(48))[:, 0].view(12, 4, -1)  # the mean patch of a clip
    within = tokens.var(dim=1).sum(dim=-1).mean()
    between = tokens.mean(dim=1).var(dim=0).sum() - within / 4
    assert between > 0.5 * within


def test_some_clips_end_in_digital_silence() -> None:
    clips = [recipe_sound(label, 0) for label in range(24)]
    ending = [not clip[-800:].any() for clip in clips]
    assert 1 <= sum(ending) <= 18
    assert all(clip[:800].any() for clip in clips)


def test_public_sounds_are_the_same_for_everyone(public: PublicTokens) -> None:
    again = PublicTokens(open_encoder(EncoderSettings(stride=16)), classes=12, clips=4)
    rows = torch.tensor([3, 40, 100])
    assert len(public) == 4 * (12 + len(SOUNDS))  # recipes and voices
    assert public.labels.tolist() == [label for label in range(12 + len(SOUNDS)) for _ in range(4)]
    assert public.batch(rows).shape == (3, *public.shape)
    assert torch.equal(public.batch(rows), again.batch(rows))
    assert torch.equal(public.batch(rows)[:1], public.batch(rows[:1]))
    assert public.batch(rows).isfinite().all()


def test_an_encoder_of_another_rate_hears_the_same_seconds() -> None:
    heard: list[int] = []

    class Recording:
        name, shape, sample_rate = "recording", (1, 1), 48_000

        def __call__(self, waveforms: list[np.ndarray]) -> torch.Tensor:
            heard.extend(len(waveform) for waveform in waveforms)
            return torch.zeros(len(waveforms), 1, 1)

        def identity(self) -> dict[str, str | int]:
            return {}

    PublicTokens(Recording(), classes=2, clips=1).batch(torch.arange(2))  # of the recipes
    assert heard == [3 * SAMPLES] * 2
