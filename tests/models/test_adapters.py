"""Adapters: shapes, sizes, seeds, and the cheap path for factored tokens."""

import pytest
import torch
from torch import Tensor

from fedgen.data.settings import TargetSettings
from fedgen.data.targets import open_targets
from fedgen.data.tokens import FactoredTokens
from fedgen.errors import ConfigError
from fedgen.models.adapters import Adapters, build_adapters
from fedgen.models.settings import AdapterSettings

SMALL = AdapterSettings(width=8, heads=2, hidden=16, dropout=0.2)
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
        adapters = Adapters(AST, shapes(target), AdapterSettings())
        outputs = adapters(torch.empty(2, *AST))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {k: (2, *v) for k, v in expected.items()}
    assert sum(parameter.numel() for parameter in adapters.parameters()) <= 25_000_000


@pytest.mark.parametrize(
    ("settings", "hidden"), [({}, (512, 384)), ({"hidden": 16}, (16, 16)), ({"wide_hidden": 600}, (512, 512))]
)
def test_wide_heads_have_a_hidden_layer_of_their_own_width(settings: dict[str, int], hidden: tuple[int, int]) -> None:
    with torch.device("meta"):
        heads = Adapters(AST, shapes("flux"), AdapterSettings(**settings)).heads
    assert (heads["clip"].inner.out_features, heads["t5"].inner.out_features) == hidden


def test_the_seed_decides_the_weights_and_leaves_the_global_state_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, again, other = (build_adapters((9, 6), TARGETS, SMALL, seed) for seed in (0, 0, 1))
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.tokens.project.weight, other.tokens.project.weight)


def test_every_part_learns() -> None:
    adapters = build_adapters((9, 6), TARGETS, SMALL, seed=0)
    torch.stack([value.square().sum() for value in adapters(tokens()).values()]).sum().backward()
    flat = [name for name, parameter in adapters.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert flat == [name for name in flat if name.endswith("score.bias")]  # softmax does not see a common shift


def test_a_clip_does_not_depend_on_its_batch() -> None:
    adapters = build_adapters((9, 6), TARGETS, SMALL, seed=0).eval()
    batch = tokens()
    for name, output in adapters(batch).items():
        torch.testing.assert_close(adapters(batch[2:3])[name], output[2:3], rtol=1e-5, atol=1e-6)


def test_the_order_of_the_tokens_matters() -> None:
    adapters = build_adapters((9, 6), TARGETS, SMALL, seed=0).eval()
    batch = tokens()
    assert not torch.allclose(adapters(batch)["clip"], adapters(batch.flip(1))["clip"], atol=1e-4)


def test_dropout_in_training_only() -> None:
    adapters = build_adapters((9, 6), TARGETS, SMALL, seed=0)
    batch = tokens()
    assert not torch.equal(adapters.train()(batch)["clip"], adapters(batch)["clip"])
    assert torch.equal(adapters.eval()(batch)["clip"], adapters(batch)["clip"])


@pytest.mark.parametrize("length", [5, 9, 17])
def test_other_lengths_than_the_trained_one(length: int) -> None:
    adapters = build_adapters((9, 6), TARGETS, SMALL, seed=0).eval()
    outputs = adapters(tokens(length=length))
    assert {name: tuple(value.shape[1:]) for name, value in outputs.items()} == TARGETS


@pytest.mark.parametrize("origins", [[0, 0, 0, 0], [1, 0, 2, 1]])
def test_factored_tokens_give_the_outputs_and_gradients_of_dense_ones(origins: list[int]) -> None:
    generator = torch.Generator().manual_seed(3)
    count = max(origins) + 1
    factored = FactoredTokens(
        torch.randn(count, 9, 4, generator=generator),
        torch.randn(count, 6, 3, generator=generator),
        torch.randn(4, 4, 3, generator=generator),
        torch.tensor(origins),
    )
    dense = torch.stack(
        [factored.positions[o] @ core @ factored.channels[o].T for core, o in zip(factored.cores, origins, strict=True)]
    )
    torch.testing.assert_close(factored.dense(), dense)
    gradients, outputs = [], []
    for batch in (factored, dense):
        adapters = build_adapters((9, 6), TARGETS, SMALL, seed=0).eval()
        outputs.append(adapters(batch))
        torch.stack([value.square().sum() for value in outputs[-1].values()]).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in adapters.named_parameters()})
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"width": 0}, r"adapter\.width=0"),
        ({"heads": -1}, r"adapter\.heads=-1"),
        ({"hidden": 0}, r"adapter\.hidden=0"),
        ({"wide_hidden": 0}, r"adapter\.wide_hidden=0"),
        ({"dropout": 1.0}, r"adapter\.dropout=1\.0"),
    ],
)
def test_sizes_that_make_no_sense(setting: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        AdapterSettings(**setting)
