"""Adapters: shapes, sizes, seeds, and what they read of a clip."""

import pytest
import torch
from torch import Tensor

from fedgen.data.settings import TargetSettings
from fedgen.data.targets import open_targets
from fedgen.data.tokens import summarise, summary_size
from fedgen.errors import ConfigError
from fedgen.models.adapters import Adapters, build_adapters
from fedgen.models.settings import AdapterSettings

SMALL = AdapterSettings(width=8, hidden=16, dropout=0.2)
AST = (1214, 768)
TARGETS = {"clip": (7,), "t5": (3, 5)}


def shapes(target: str) -> dict[str, tuple[int, ...]]:
    heads = open_targets(["dog", "rain"], TargetSettings(target)).heads
    return {name: tuple(value.shape[1:]) for name, value in heads.items()}


def tokens(count: int = 4, length: int = 9, width: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, length, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("small", {"text": (384,)}),
        ("sd", {"clip": (77, 768)}),
        ("flux", {"clip": (768,), "t5": (17, 4096)}),
    ],
)
def test_sizes_on_ast_tokens(target: str, expected: dict[str, tuple[int, ...]]) -> None:
    assert shapes(target) == expected
    with torch.device("meta"):
        adapters = Adapters(AST[1], shapes(target), AdapterSettings(), bands=12)
        outputs = adapters(torch.empty(2, summary_size(AST[1], 12)))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {k: (2, *v) for k, v in expected.items()}
    assert sum(parameter.numel() for parameter in adapters.parameters()) <= 3_000_000


def test_the_seed_decides_the_weights_and_leaves_the_global_state_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, again, other = (build_adapters(6, TARGETS, SMALL, seed) for seed in (0, 0, 1))
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.narrow.weight, other.narrow.weight)


def test_every_part_learns() -> None:
    adapters = build_adapters(6, TARGETS, SMALL, seed=0)
    torch.stack([value.square().sum() for value in adapters(tokens()).values()]).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in adapters.parameters())


def test_a_clip_does_not_depend_on_its_batch() -> None:
    adapters = build_adapters(6, TARGETS, SMALL, seed=0).eval()
    batch = tokens()
    for name, output in adapters(batch).items():
        torch.testing.assert_close(adapters(batch[2:3])[name], output[2:3], rtol=1e-5, atol=1e-6)


def test_the_order_of_the_tokens_matters() -> None:
    """By bands; within a band it does not."""
    adapters, batch = build_adapters(6, TARGETS, SMALL, seed=0, bands=3).eval(), tokens()
    output, turned = adapters(batch)["clip"], batch.unflatten(1, (3, 3))
    assert not torch.allclose(adapters(turned.flip(1).flatten(1, 2))["clip"], output, atol=1e-4)
    torch.testing.assert_close(adapters(turned.flip(2).flatten(1, 2))["clip"], output)


def test_dropout_in_training_only() -> None:
    adapters = build_adapters(6, TARGETS, SMALL, seed=0)
    batch = tokens()
    assert not torch.equal(adapters.train()(batch)["clip"], adapters(batch)["clip"])
    assert torch.equal(adapters.eval()(batch)["clip"], adapters(batch)["clip"])


@pytest.mark.parametrize("length", [6, 9, 31])
def test_tokens_of_any_length_give_what_their_summaries_give(length: int) -> None:
    adapters = build_adapters(6, TARGETS, SMALL, seed=0, bands=3).eval()
    batch = tokens(length=length)
    outputs = adapters(batch)
    assert {name: tuple(value.shape[1:]) for name, value in outputs.items()} == TARGETS
    torch.testing.assert_close(adapters(summarise(batch, 3)), outputs)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"width": 0}, r"adapter\.width=0"),
        ({"hidden": 0}, r"adapter\.hidden=0"),
        ({"dropout": 1.0}, r"adapter\.dropout=1\.0"),
    ],
)
def test_sizes_that_make_no_sense(setting: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        AdapterSettings(**setting)
