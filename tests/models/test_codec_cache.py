"""The public codec on a machine's disk: made once, told from others, whole or made anew."""

import logging
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from fedgen.data.encoders import open_encoder
from fedgen.data.public import VERSION
from fedgen.data.settings import EncoderSettings
from fedgen.data.tensors import load_tensors, save_tensors
from fedgen.errors import ConfigError, DataError
from fedgen.models.public import PublicSpace, codec_identity, public_space
from fedgen.models.settings import CodecSettings, Lengths

ENCODER = EncoderSettings(stride=16)
SIZES = CodecSettings(channels=4, positions=4, components=5)


def write_clips(folder: Path, seed: int = 0, classes: int = 2, count: int = 4) -> Path:
    """Write noises of a few colours: public sounds for a moment's work."""
    generator = np.random.default_rng(seed)
    for label in range(classes):
        (folder / f"sound{label}").mkdir(parents=True)
        for number in range(count):
            noise = generator.standard_normal(8000).cumsum() if label else generator.standard_normal(8000)
            soundfile.write(folder / f"sound{label}" / f"{number}.wav", 0.5 * noise / np.abs(noise).max(), 16000)
    return folder


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    return write_clips(tmp_path / "public")


@pytest.fixture
def sizes(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CodecSettings:
    """Sizes of a codec of a few clips, in a home where there is none yet; of one process each."""
    monkeypatch.setenv("FEDGEN_HOME", str(tmp_path / "home"))
    public_space.cache_clear()
    return replace(SIZES, public=str(clips))


@pytest.fixture(autouse=True)
def _forget() -> None:
    public_space.cache_clear()


def again(sizes: CodecSettings, lengths: Lengths = Lengths()) -> PublicSpace:  # noqa: B008
    """Return the codec as another process finds it."""
    public_space.cache_clear()
    return public_space(ENCODER, sizes, lengths)


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "home" / "codecs").glob("*.safetensors"))


def times_fitted(caplog: pytest.LogCaptureFixture) -> int:
    return caplog.text.count("fitting the codec to public sounds")


def test_it_is_worked_out_once(sizes: CodecSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fedgen")
    own = again(sizes)
    assert public_space(ENCODER, sizes, Lengths()) is own
    torch.testing.assert_close(again(sizes).state(), own.state(), atol=0, rtol=0)
    assert (times_fitted(caplog), len(files(tmp_path))) == (1, 1)
    assert (own.codec.size, own.latents.shape, own.labels.tolist()) == (5, (8, 5), [0] * 4 + [1] * 4)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"\x80\x04." + content,
        lambda content: content[: len(content) // 2],
        lambda content: content[:-3] + bytes([content[-3] ^ 0x40]) + content[-2:],
        lambda content: content[:-2000] + bytes([content[-2000] ^ 0x40]) + content[-1999:],
    ],
    ids=["empty", "no tensors", "half", "a bit of a label", "a bit of the codec"],
)
def test_a_damaged_file_is_made_anew(
    damage: Callable[[bytes], bytes], sizes: CodecSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = again(sizes)
    (file,) = files(tmp_path)
    content = file.read_bytes()
    file.write_bytes(damage(content))
    torch.testing.assert_close(again(sizes).state(), own.state(), atol=0, rtol=0)
    assert file.read_bytes() == content
    assert f"{file} is made anew: " in caplog.text


def test_a_whole_file_of_another_codec_in_its_place_is_made_anew(sizes: CodecSettings, tmp_path: Path) -> None:
    own = again(sizes)
    (file,) = files(tmp_path)
    tensors, about = load_tensors(file)
    save_tensors(file, {**tensors, "labels": tensors["labels"][:-1]}, about)
    torch.testing.assert_close(again(sizes).state(), own.state(), atol=0, rtol=0)
    save_tensors(file, tensors, about | {"public": "somebody's clips"})
    again(sizes)
    assert load_tensors(file)[1]["public"] == about["public"]


def test_what_decides_the_codec_decides_the_file(sizes: CodecSettings, tmp_path: Path) -> None:
    for number, (chosen, lengths) in enumerate(
        [
            (sizes, Lengths()),
            (sizes, Lengths(8)),
            (sizes, Lengths(8, 30)),
            (sizes, Lengths(8, 30, "learned")),
            (replace(sizes, public=str(write_clips(tmp_path / "other", seed=1))), Lengths()),
        ],
        start=1,
    ):
        again(chosen, lengths)
        assert len(files(tmp_path)) == number
    assert again(replace(sizes, components=4), Lengths()).codec.size == 4
    assert not again(replace(sizes, noise=False), Lengths()).codec.residual.any()
    assert len(files(tmp_path)) == number  # all components are kept: fewer are taken of them


def test_the_same_sounds_in_another_folder_are_the_same_codec(sizes: CodecSettings, tmp_path: Path) -> None:
    moved = replace(sizes, public=str(write_clips(tmp_path / "elsewhere")))
    again(sizes)
    again(moved)
    assert len(files(tmp_path)) == 1
    changed = tmp_path / "elsewhere" / "sound0" / "0.wav"
    soundfile.write(changed, 0.1 * np.ones(8000), 16000)
    again(moved)
    assert len(files(tmp_path)) == 2


def test_into_how_many_tokens_it_decodes_is_not_part_of_the_identity_and_what_a_summary_is_is(
    sizes: CodecSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = open_encoder(ENCODER).identity()
    known = codec_identity(encoder, sizes, Lengths(8))
    assert known == codec_identity(encoder, sizes, Lengths(8, 30, "learned"))
    assert known != codec_identity(encoder, sizes, Lengths(9))
    assert str(known["public"]).startswith("sha256:")
    assert codec_identity(encoder, SIZES, Lengths())["public"] == f"synthesised, version {VERSION}"
    monkeypatch.setattr("fedgen.models.public.SUMMARY_VERSION", 0)
    assert known != codec_identity(encoder, sizes, Lengths(8))


def opened(home: str, sizes: CodecSettings, barrier: "multiprocessing.synchronize.Barrier", told: Path) -> None:
    """Open the codec in a process of its own, as others do at the same time; log what is done."""
    import os

    os.environ["FEDGEN_HOME"] = home
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, filename=told)
    barrier.wait(60)
    save_tensors(told.with_suffix(".safetensors"), public_space(ENCODER, sizes, Lengths()).state(), {})


def test_two_processes_at_once_make_one_codec(sizes: CodecSettings, tmp_path: Path) -> None:
    processes = multiprocessing.get_context("forkserver")
    barrier, told = processes.Barrier(2), [tmp_path / f"{number}.log" for number in range(2)]
    home = str(tmp_path / "home")
    started = [processes.Process(target=opened, args=(home, sizes, barrier, path)) for path in told]
    for process in started:
        process.start()
    for process in started:
        process.join()
        assert process.exitcode == 0
    assert sum(path.read_text().count("fitting the codec") for path in told) == 1
    first, second = (load_tensors(path.with_suffix(".safetensors"))[0] for path in told)
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    assert len(files(tmp_path)) == 1


def test_a_folder_that_is_not_there_is_told_by_its_key(sizes: CodecSettings, tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path / "public" / "sound0"):  # the second holds no folders
        with pytest.raises(DataError, match=rf"^codec\.public={folder}: ") as caught:
            again(replace(sizes, public=str(folder)))
        assert "\n" not in str(caught.value)
        assert "data.root" not in str(caught.value)
    assert files(tmp_path) == []


def test_a_clip_that_cannot_be_read_is_named_with_the_key(sizes: CodecSettings, clips: Path, tmp_path: Path) -> None:
    (clips / "sound1" / "2.wav").write_bytes(b"RIFF, but no sound")
    with pytest.raises(DataError, match=r"^codec\.public=.*2\.wav") as caught:
        again(sizes)
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == []


@pytest.mark.parametrize(("classes", "count"), [(1, 2), (2, 1)])
def test_two_clips_are_enough_and_one_is_refused(
    classes: int, count: int, sizes: CodecSettings, tmp_path: Path
) -> None:
    own = again(replace(sizes, public=str(write_clips(tmp_path / "two", classes=classes, count=count))))
    assert own.codec.size == 1
    assert own.within.isfinite().all()
    with pytest.raises(DataError, match=r"codec\.public=.*one: one clip does not say"):
        again(replace(sizes, public=str(write_clips(tmp_path / "one", classes=1, count=1))))


def test_a_length_that_the_encoder_does_not_have_is_refused_before_any_sound_is_read(
    sizes: CodecSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedgen.models.public.open_public", lambda *_: pytest.fail("sounds were read"))
    with pytest.raises(ConfigError, match=r"generator\.training_length=600 is longer than the encoder's"):
        again(sizes, Lengths(600))
