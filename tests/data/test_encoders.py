import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedgen.data.clip_t5 import TEXT_ENCODERS
from fedgen.data.datasets import READERS
from fedgen.data.encoders import ENCODER_CLASSES, FrozenEncoder, open_encoder
from fedgen.data.partition import PARTITIONERS
from fedgen.data.patches import LogMel, PatchEncoder
from fedgen.data.settings import DATASETS, ENCODERS, PARTITIONS, PIPELINES, PRETRAINED, EncoderSettings
from fedgen.errors import ConfigError


def clips() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    lengths = [16000, 500, 80000, 200000]  # the last is longer than 1024 frames
    noisy = [rng.standard_normal(n) * 0.1 + np.sin(np.arange(n) / 7) * 0.5 for n in lengths]
    return [clip.astype(np.float32) for clip in [*noisy, np.zeros(16000), noisy[0] * 1e-4]]


def test_features_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is a development dependency")
    extractor = transformers.ASTFeatureExtractor()
    expected = [extractor(clip, sampling_rate=16000, return_tensors="np")["input_values"][0] for clip in clips()]
    assert np.abs(LogMel()(clips()).numpy() - np.stack(expected)).max() < 1e-3


def test_tokens_have_asts_number_and_order() -> None:
    encoder = open_encoder(EncoderSettings())
    tokens = encoder(clips()[:1])
    assert (tokens.shape, tokens.dtype, encoder.shape) == ((1, 1214, 768), torch.float16, (1214, 768))
    image = LogMel()(clips()[:1])[0].T  # (mels, frames)
    mel, frame = 7, 33
    patch = image[10 * mel : 10 * mel + 16, 10 * frame : 10 * frame + 16].flatten()
    expected = patch @ PatchEncoder(EncoderSettings())._projection
    assert torch.allclose(tokens[0, 2 + 101 * mel + frame].float(), expected, atol=2e-3)


def test_leading_tokens_are_mean_and_deviation_of_the_patches() -> None:
    tokens = PatchEncoder(EncoderSettings(stride=16))(clips()[:1])[0].float()
    assert torch.allclose(tokens[0], tokens[2:].mean(0), atol=2e-3)
    patches = functional.unfold(LogMel()(clips()[:1]).transpose(1, 2)[:, None], 16, stride=16)[0].T
    assert torch.allclose(tokens[1].norm(), patches.std(0).norm(), atol=1e-2)


def test_projection_keeps_lengths_and_is_the_same_everywhere() -> None:
    projection = PatchEncoder(EncoderSettings())._projection
    assert torch.allclose(projection @ projection.T, torch.eye(256), atol=1e-5)
    assert projection[0, :3].tolist() == pytest.approx(PINNED, abs=1e-6)


def test_batches_do_not_change_tokens() -> None:
    together, apart = (PatchEncoder(EncoderSettings(stride=16, batch_size=size))(clips()) for size in (8, 1))
    assert torch.allclose(together.float(), apart.float(), atol=2e-3)


def test_a_clip_shorter_than_a_frame_has_tokens() -> None:
    tokens = PatchEncoder(EncoderSettings(stride=16))([np.ones(10, dtype=np.float32)])
    assert torch.isfinite(tokens).all()


def test_stride_is_a_setting() -> None:
    encoder = open_encoder(EncoderSettings(stride=16))
    assert encoder.shape == (2 + 8 * 64, 768)
    assert encoder.identity() != open_encoder(EncoderSettings()).identity()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"stride": 0}, r"encoder\.stride=0"),
        ({"batch_size": 0}, r"encoder\.batch_size=0"),
        ({"name": "patch"}, "patches"),
    ],
)
def test_bad_settings_name_value_and_key(bad: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EncoderSettings(**bad)


PINNED = [-0.04403094, 0.0005563, -0.02518926]


def test_every_choice_of_the_settings_has_a_class() -> None:
    assert tuple(ENCODER_CLASSES) == ENCODERS
    assert tuple(name for name, made in ENCODER_CLASSES.items() if issubclass(made, FrozenEncoder)) == PRETRAINED
    assert tuple(READERS) == DATASETS
    assert sorted(PARTITIONERS) == sorted(PARTITIONS)
    assert sorted(TEXT_ENCODERS) == sorted(PIPELINES)


def test_settings_import_neither_torch_nor_numpy() -> None:
    heavy = "{'torch', 'numpy', 'scipy', 'soundfile', 'transformers'}"
    program = f"import sys, fedgen.data.settings; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
