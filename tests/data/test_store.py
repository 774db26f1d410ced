import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fedgen.data import store as store_module
from fedgen.data.datasets import Clip, open_dataset
from fedgen.data.encoders import PatchEncoder
from fedgen.data.settings import DataSettings, EncoderSettings
from fedgen.data.store import identity_of, open_store, prepare, store_folder
from fedgen.errors import DataError

ESC10 = Path(__file__).parents[2] / ".." / "shared" / "data" / "esc10"


class Tones:
    """Ten clips of two classes in two folds; a clip's waveform is its number."""

    name = "tones"
    classes = ("low", "high")
    groups = {"all": ["low", "high"]}  # noqa: RUF012

    def __init__(self, broken: int | None = None) -> None:
        self.clips = [Clip(str(i), i % 2, 1 + i // 5, str(i)) for i in range(10)]
        self.broken = broken

    def load(self, clip: Clip) -> tuple[np.ndarray, int]:
        if clip.name == str(self.broken):
            raise DataError(f"clip {clip.name} cannot be decoded")
        return np.full(4, float(clip.name), dtype=np.float32), 8000

    def identity(self) -> dict[str, str | int]:
        return {"name": self.name}


class Means:
    """An encoder whose tokens all hold the waveform's mean; it counts the clips that it has encoded."""

    name, shape, sample_rate = "means", (3, 2), 8000

    def __init__(self, version: int = 1, revision: str | None = None) -> None:
        self.version, self.revision, self.encoded = version, revision, 0

    def __call__(self, waveforms: list[np.ndarray]) -> Tensor:
        self.encoded += len(waveforms)
        return torch.tensor([w.mean() for w in waveforms]).half()[:, None, None].expand(-1, 3, 2)

    def identity(self) -> dict[str, str | int]:
        said = {"revision": self.revision} if self.revision else {}
        return {"name": self.name, "version": self.version, **said}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SHARD_CLIPS", 4)


def test_clips_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    store = prepare(Tones(), Means(), tmp_path)
    order = [9, 0, 5, 5, 3, 8]
    tokens = store.tokens(order)
    assert (tokens.shape, tokens.dtype) == ((6, 3, 2), torch.float16)
    assert tokens[:, 0, 0].tolist() == order
    assert torch.equal(tokens, store.tokens(np.array(order)))
    assert store.tokens([]).shape == (0, 3, 2)


def test_a_store_knows_its_clips(tmp_path: Path) -> None:
    prepare(Tones(), Means(), tmp_path)
    store = open_store(tmp_path, identity_of(Tones(), Means()))
    assert store.names == [str(i) for i in range(10)]
    assert store.labels.tolist() == [0, 1] * 5
    assert (store.classes, store.groups) == (["low", "high"], {"all": ["low", "high"]})
    assert (store.shape, len(store), store.labels.dtype) == ((3, 2), 10, np.int64)
    assert store.train_indices(2).tolist() == [0, 1, 2, 3, 4]
    assert store.test_indices(2).tolist() == [5, 6, 7, 8, 9]
    with pytest.raises(DataError, match=r"data\.test_fold=3 is not one of the folds \[1, 2\]"):
        store.test_indices(3)
    assert store.train_indices(2, [1]).tolist() == []
    with pytest.raises(DataError, match=r"data\.leave_out=7 is not one of the folds"):
        store.train_indices(2, [7])


def test_shards_are_mapped_only_while_they_are_read(tmp_path: Path) -> None:
    store = prepare(Tones(), Means(), tmp_path)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux tells what is mapped")
    shard = store._shard(0)
    assert str(tmp_path / "shard_00000.safetensors") in maps.read_text()
    del shard
    store.tokens([0, 5])
    assert str(tmp_path) not in maps.read_text()


def test_clips_come_in_the_precision_asked_for(tmp_path: Path) -> None:
    store = prepare(Tones(), Means(), tmp_path)
    assert store.tokens([3, 8], torch.float32).dtype == torch.float32
    assert torch.equal(store.tokens([3, 8], torch.float32), store.tokens([3, 8]).float())


def test_the_encoder_gets_no_more_clips_than_it_takes_at_once(tmp_path: Path) -> None:
    asked = []

    class Batched(Means):
        batch_size = 3

        def __call__(self, waveforms: list[np.ndarray]) -> torch.Tensor:
            asked.append(len(waveforms))
            return super().__call__(waveforms)

    store = prepare(Tones(), Batched(), tmp_path)
    assert asked == [3, 1, 3, 1, 2]  # shards of 4
    assert store.tokens(range(10))[:, 0, 0].tolist() == list(range(10))


def test_a_second_call_does_nothing_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepare(Tones(), Means(), tmp_path)
    encoder = Means()
    with caplog.at_level(logging.INFO):
        prepare(Tones(), encoder, tmp_path)
    assert encoder.encoded == 0
    assert "nothing to do" in caplog.text


def test_an_interrupted_preparation_goes_on(tmp_path: Path) -> None:
    encoder = Means()
    with pytest.raises(DataError, match="clip 6 cannot be decoded"):
        prepare(Tones(broken=6), encoder, tmp_path)
    assert encoder.encoded == 4
    with pytest.raises(DataError, match=r"not complete, 2 shards are missing.*fedgen prepare"):
        open_store(tmp_path)
    store = prepare(Tones(), encoder, tmp_path)
    assert encoder.encoded == 10
    assert store.tokens(range(10))[:, 0, 0].tolist() == list(range(10))


def test_another_encoder_or_data_set_is_refused_with_the_difference(tmp_path: Path) -> None:
    prepare(Tones(), Means(), tmp_path)
    for attempt in (
        lambda: prepare(Tones(), Means(version=2), tmp_path),
        lambda: open_store(tmp_path, identity_of(Tones(), Means(version=2))),
    ):
        with pytest.raises(DataError, match=r"encoder\.version is 1, this run has 2.*data\.store"):
            attempt()
    other = Tones()
    other.name = "noises"
    with pytest.raises(DataError, match=r"data\.name is tones, this run has noises"):
        open_store(tmp_path, identity_of(other, Means()))


def test_a_store_says_the_revision_of_its_encoder(tmp_path: Path) -> None:
    store = prepare(Tones(), Means(revision="v1"), tmp_path)
    assert store.encoder == {"name": "means", "version": 1, "revision": "v1"}
    assert store.identity == identity_of(Tones(), Means())  # what nodes must agree on, wherever their models are from
    for same in (Means(revision="v1"), Means()):
        assert prepare(Tones(), same, tmp_path).encoder == store.encoder
    with pytest.raises(DataError, match=r"encoder\.revision is v1, this run has v2"):
        prepare(Tones(), Means(revision="v2"), tmp_path)


def test_a_damaged_shard_is_found_and_written_again(tmp_path: Path) -> None:
    store = prepare(Tones(), Means(), tmp_path)
    store.verify()
    shard = tmp_path / "shard_00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.unlink()
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"shard_00001\.safetensors is damaged"):
        open_store(tmp_path).verify()
    encoder = Means()
    prepare(Tones(), encoder, tmp_path).verify()
    assert encoder.encoded == 4


def test_a_cut_off_or_lost_shard_is_refused_at_opening(tmp_path: Path) -> None:
    prepare(Tones(), Means(), tmp_path)
    shard = tmp_path / "shard_00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"shard_00002\.safetensors is missing or damaged"):
        open_store(tmp_path)
    shard.unlink()
    with pytest.raises(DataError, match=r"shard_00002\.safetensors is missing or damaged"):
        open_store(tmp_path)


def test_no_store_and_a_damaged_index_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no embedding store.*fedgen prepare"):
        open_store(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(DataError, match=r"index\.json is damaged.*fedgen prepare"):
        open_store(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(DataError, match="not an index of format 1"):
        open_store(tmp_path)


def test_preparing_twice_at_once_encodes_once(tmp_path: Path) -> None:
    encoders = [Means(), Means()]
    with ThreadPoolExecutor(2) as pool:
        stores = list(pool.map(lambda encoder: prepare(Tones(), encoder, tmp_path), encoders))
    assert sorted(encoder.encoded for encoder in encoders) == [0, 10]
    for store in stores:
        store.verify()


def test_the_folder_follows_setting_home_and_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDGEN_HOME", str(tmp_path))
    folder = store_folder(DataSettings(), Tones(), Means())
    assert folder.parent == tmp_path / "stores"
    assert folder.name.startswith("tones-means-")
    assert folder == store_folder(DataSettings(), Tones(), Means())
    assert folder != store_folder(DataSettings(), Tones(), Means(version=2))
    assert folder == store_folder(DataSettings(), Tones(), Means(revision="main"))
    assert folder != store_folder(DataSettings(), Tones(), Means(revision="v2"))
    assert store_folder(DataSettings(store=str(tmp_path / "mine")), Tones(), Means()) == tmp_path / "mine"


def test_sounds_go_through_the_real_encoder(tmp_path: Path) -> None:
    dataset = open_dataset(DataSettings(clips_per_class=4, folds=2, test_fold=1, classes=["dog", "rain"]))
    store = prepare(dataset, PatchEncoder(EncoderSettings(stride=16)), tmp_path)
    expected = PatchEncoder(EncoderSettings(stride=16))([dataset.load(dataset.clips[5])[0]])
    assert torch.allclose(store.tokens([5]).float(), expected.float(), atol=2e-3)
    assert store.groups == {"animals": ["dog"], "nature": ["rain"]}


@pytest.mark.skipif(not ESC10.is_dir(), reason="real audio is absent: shared/data/esc10 beside the checkout")
def test_real_clips_are_encoded(tmp_path: Path) -> None:
    dataset = open_dataset(DataSettings(name="esc50", root=str(ESC10), classes=["dog"]))
    dataset.clips = dataset.clips[::8]
    store = prepare(dataset, PatchEncoder(EncoderSettings(stride=16)), tmp_path)
    tokens = store.tokens(range(len(store))).float()
    assert tokens.shape == (5, 514, 768)
    assert torch.isfinite(tokens).all()
    assert 0.1 < tokens.std() < 1
