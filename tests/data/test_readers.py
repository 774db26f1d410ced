from pathlib import Path

import numpy as np
import pytest
import soundfile

from fedgen.data.datasets import open_dataset
from fedgen.data.settings import DataSettings
from fedgen.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write three classes of clips as wav, ogg and flac; of `cat` five recordings of two segments each."""
    names = {
        "cat": [f"rec{i // 2}_seg{i % 2}.wav" for i in range(10)],
        "bird": [f"{i}.ogg" for i in range(5)],
        "cow": [f"{i}.FLAC" for i in range(7)],
    }
    for label, files in names.items():
        (tmp_path / label).mkdir()
        for file in files:
            soundfile.write(tmp_path / label / file, np.full(1000, 0.1), 16000)
    (tmp_path / "cat" / "notes.txt").write_text("ignored")
    return tmp_path


def folder(root: Path, **more: int) -> DataSettings:
    return DataSettings(name="folder", root=str(root), **more)


def test_folders_are_classes(root: Path) -> None:
    dataset = open_dataset(folder(root))
    assert dataset.classes == ["bird", "cat", "cow"]
    assert len(dataset.clips) == 22
    assert dataset.clips[0].name == "bird/0.ogg"
    assert dataset.load(dataset.clips[0])[1] == 16000


def test_segments_of_a_recording_share_a_fold(root: Path) -> None:
    cats = [clip for clip in open_dataset(folder(root)).clips if clip.label == 1]
    assert len({clip.recording for clip in cats}) == len({(clip.recording, clip.fold) for clip in cats}) == 5
    assert {clip.fold for clip in cats} == {1, 2, 3, 4, 5}


def test_the_seed_decides_the_folds(root: Path) -> None:
    def folds(seed: int) -> list[int]:
        return [clip.fold for clip in open_dataset(folder(root, seed=seed)).clips]

    assert folds(0) == folds(0) != folds(1)


def test_a_class_without_clips_is_named(root: Path) -> None:
    (root / "empty").mkdir()
    with pytest.raises(DataError, match=r"class empty has no clip.*\.wav, \.ogg, \.flac"):
        open_dataset(folder(root))


def test_a_class_with_one_recording_cannot_be_tested(root: Path) -> None:
    (root / "dog").mkdir()
    soundfile.write(root / "dog" / "only.wav", np.full(1000, 0.1), 16000)
    with pytest.raises(DataError, match=r"no clip to (test|train) on for class dog"):
        open_dataset(folder(root))


def test_a_root_without_folders_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no folders: data=folder expects class/clip"):
        open_dataset(folder(tmp_path))
