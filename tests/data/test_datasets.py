import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fedgen.data.datasets import open_dataset
from fedgen.data.settings import DataSettings
from fedgen.errors import ConfigError, DataError

ESC10 = Path(__file__).parents[2] / ".." / "shared" / "data" / "esc10"
CLASSES = ["zebra", "ant"]  # by target, not by name


@pytest.fixture
def esc(tmp_path: Path) -> Path:
    """Write two classes of four clips in the ESC-50 layout, two folds, targets 3 and 7."""
    rows = [
        [f"{fold}-{9 * fold + i}-A-{t}.wav", fold, t, c]
        for t, c in zip((3, 7), CLASSES, strict=True)
        for fold in (1, 2)
        for i in (0, 1)
    ]
    (tmp_path / "audio").mkdir()
    for row in rows:
        soundfile.write(tmp_path / "audio" / str(row[0]), np.full(100, 0.1), 8000)
    write_meta(tmp_path, ["filename", "fold", "target", "category"], rows)
    return tmp_path


def write_meta(root: Path, header: list[str], rows: list[list]) -> None:
    (root / "meta").mkdir(exist_ok=True)
    with (root / "meta" / "esc50.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def esc50(root: Path | None, test_fold: int = 2, **more: list[str]) -> DataSettings:
    return DataSettings(name="esc50", root=root and str(root), test_fold=test_fold, **more)


def test_esc50_has_official_folds_and_dense_ids(esc: Path) -> None:
    dataset = open_dataset(esc50(esc))
    assert dataset.classes == CLASSES
    first = dataset.clips[0]
    assert (first.name, first.label, first.fold, first.recording) == ("1-10-A-3.wav", 0, 1, "10")
    waveform, rate = dataset.load(first)
    assert (waveform.shape, rate) == ((100,), 8000)


def test_identity_does_not_depend_on_the_place_but_on_the_content(esc: Path, tmp_path: Path) -> None:
    before = open_dataset(esc50(esc)).identity()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (esc / "audio").rename(moved / "audio")
    (esc / "meta").rename(moved / "meta")
    assert open_dataset(esc50(moved)).identity() == before
    soundfile.write(moved / "audio" / "1-9-A-3.wav", np.full(200, 0.1), 8000)
    assert open_dataset(esc50(moved)).identity() != before


def test_classes_can_be_chosen(esc: Path) -> None:
    dataset = open_dataset(esc50(esc, classes=["ant"]))
    assert dataset.classes == ["ant"]
    assert {clip.label for clip in dataset.clips} == {0}
    with pytest.raises(ConfigError, match=r"data\.classes='aunt'.*Did you mean 'ant'"):
        open_dataset(esc50(esc, classes=["aunt"]))


def test_absent_roots_say_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data=esc50 needs data\.root.*meta/esc50\.csv"):
        open_dataset(esc50(None))
    with pytest.raises(DataError, match=r"data\.root=.*gone is not a folder.*audio/"):
        open_dataset(esc50(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"esc50\.csv does not exist"):
        open_dataset(esc50(tmp_path))


def test_bad_tables_are_named(esc: Path) -> None:
    write_meta(esc, ["filename", "fold", "target"], [["1-9-A-3.wav", 1, 3]])
    with pytest.raises(DataError, match="lacks the columns category"):
        open_dataset(esc50(esc))
    write_meta(esc, ["filename", "fold", "target", "category"], [["1-9-A-3.wav", "one", 3, "zebra"]])
    with pytest.raises(DataError, match="line 2: fold='one'"):
        open_dataset(esc50(esc))


def test_a_missing_clip_is_named(esc: Path) -> None:
    (esc / "audio" / "2-18-A-7.wav").unlink()
    with pytest.raises(DataError, match=r"1 of 8 clips.*2-18-A-7\.wav"):
        open_dataset(esc50(esc))


def test_a_class_without_test_or_training_clip_is_named(esc: Path) -> None:
    rows = [["1-9-A-3.wav", 1, 3, "zebra"], ["2-18-A-3.wav", 2, 3, "zebra"], ["1-9-A-7.wav", 1, 7, "ant"]]
    write_meta(esc, ["filename", "fold", "target", "category"], rows)
    with pytest.raises(DataError, match=r"no clip to test on for class ant with data\.test_fold=2"):
        open_dataset(esc50(esc))
    with pytest.raises(DataError, match=r"no clip to train on for class ant with data\.test_fold=1"):
        open_dataset(esc50(esc, test_fold=1))
    with pytest.raises(ConfigError, match=r"data\.test_fold=5 is not one of the folds \[1, 2\]"):
        open_dataset(esc50(esc, test_fold=5))


def test_sounds_have_the_reference_classes_and_groups() -> None:
    dataset = open_dataset(DataSettings(clips_per_class=10))
    assert len(dataset.classes) == 15
    assert [len(names) for names in dataset.groups.values()] == [5, 5, 5]
    assert [name for names in dataset.groups.values() for name in names] == dataset.classes
    folds_of = {
        clip.recording: {other.fold for other in dataset.clips if other.recording == clip.recording}
        for clip in dataset.clips
    }
    assert all(len(folds) == 1 for folds in folds_of.values())
    waveform, rate = dataset.load(dataset.clips[0])
    assert (waveform.dtype, rate) == (np.float32, 16000)


def test_chosen_sounds_keep_their_audio_and_groups() -> None:
    everything, few = (
        open_dataset(DataSettings(clips_per_class=10)),
        open_dataset(DataSettings(clips_per_class=10, classes=["rain", "dog"])),
    )
    assert few.classes == ["dog", "rain"]
    assert few.groups == {"animals": ["dog"], "nature": ["rain"]}
    rain = next(clip for clip in everything.clips if clip.name == "rain/0")
    assert np.array_equal(few.load(few.clips[10])[0], everything.load(rain)[0])


def test_settings_decide_the_identity_of_sounds() -> None:
    def identity(**settings: int) -> dict:
        return open_dataset(DataSettings(**{"clips_per_class": 10, **settings})).identity()

    assert identity() == identity(test_fold=1)
    assert identity() != identity(seed=1) != identity(clips_per_class=12)


def test_too_few_sounds_for_the_folds_are_refused() -> None:
    with pytest.raises((DataError, ConfigError), match=r"data\.test_fold=5"):
        open_dataset(DataSettings(clips_per_class=4))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"name": "esc51"}, "Did you mean 'esc50'"),
        ({"test_fold": 0}, r"data\.test_fold=0"),
        ({"folds": 1}, r"data\.folds=1"),
        ({"clips_per_class": 0}, r"data\.clips_per_class=0"),
    ],
)
def test_bad_settings_name_value_and_key(bad: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataSettings(**bad)


@pytest.mark.skipif(not ESC10.is_dir(), reason="real audio is absent: shared/data/esc10 beside the checkout")
def test_real_esc10_opens_and_decodes() -> None:
    dataset = open_dataset(DataSettings(name="esc50", root=str(ESC10)))
    assert len(dataset.clips) == 400
    assert len(dataset.classes) == 10
    waveform, rate = dataset.load(dataset.clips[0])
    assert rate == 44100
    assert 4.9 < len(waveform) / rate < 5.1
