import pytest
import torch
from torch.nn.functional import cosine_similarity

from fedgen.data.settings import TargetSettings
from fedgen.data.targets import open_targets
from fedgen.errors import ConfigError, DataError

CLASSES = ["sea_waves", "sea lion", "dog", "car_horn"]


@pytest.mark.parametrize(
    ("name", "shapes"),
    [("sd", {"clip": (4, 77, 768)}), ("flux", {"clip": (4, 768), "t5": (4, 17, 4096)}), ("small", {"text": (4, 384)})],
)
def test_heads_have_the_shapes_of_the_diffusion_models(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    targets = open_targets(CLASSES, TargetSettings(name=name))
    assert {head: tuple(value.shape) for head, value in targets.heads.items()} == shapes
    for value in targets.heads.values():
        assert torch.allclose(value.norm(dim=-1), torch.ones(value.shape[:-1]), atol=1e-5)
    width = sum(shape[-1] for shape in shapes.values())
    assert targets.conditions().pooled().shape == (4, width)
    assert torch.allclose(targets.conditions().pooled().norm(dim=1), torch.full((4,), len(shapes) ** 0.5), atol=1e-5)


@pytest.mark.parametrize("name", ["sd", "flux", "small"])
def test_prompts_that_share_words_are_near(name: str) -> None:
    for value in open_targets(CLASSES, TargetSettings(name=name)).heads.values():
        flat = value.flatten(1)
        near, far = cosine_similarity(flat[0], flat[1], dim=0), cosine_similarity(flat[0], flat[2], dim=0)
        assert 0.3 < near < 0.8
        assert -0.1 < far < near - 0.2


def test_token_positions_differ() -> None:
    tokens = open_targets(["dog"], TargetSettings(name="flux")).heads["t5"][0]
    cosines = tokens @ tokens.T - torch.eye(len(tokens))
    assert 0.5 < cosines.max() < 0.95


def test_a_target_does_not_depend_on_the_other_classes_or_the_machine() -> None:
    alone = open_targets(["dog"], TargetSettings()).heads["text"][0]
    among = open_targets(CLASSES, TargetSettings()).heads["text"][2]
    assert torch.equal(alone, among)
    assert alone[:3].tolist() == pytest.approx(PINNED, abs=1e-6)


def test_the_template_and_token_count_are_settings() -> None:
    settings = TargetSettings(name="flux", t5_tokens=5, template="{}")
    heads = open_targets(["dog"], settings).heads
    assert heads["t5"].shape == (1, 5, 4096)
    assert not torch.equal(heads["clip"], open_targets(["dog"], TargetSettings(name="flux")).heads["clip"])


def test_classes_of_the_same_words_are_refused() -> None:
    with pytest.raises(DataError, match="'car_horn' and 'Horn car'"):
        open_targets(["car_horn", "Horn car"], TargetSettings())
    with pytest.raises(DataError, match="'_' holds no word"):
        open_targets(["_"], TargetSettings())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"name": "fluks"}, "Did you mean 'flux'"),
        ({"template": "sound"}, r"target\.template='sound'"),
        ({"t5_tokens": 0}, r"target\.t5_tokens=0"),
        ({"source": "clip"}, r"target\.source='clip'"),
    ],
)
def test_bad_settings_name_value_and_key(bad: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TargetSettings(**bad)


PINNED = [0.03972125, 0.05435944, 0.06975731]
