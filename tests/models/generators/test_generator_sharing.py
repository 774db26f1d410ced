"""Generators that nodes share: state travels without loss, several states become one, bad states change nothing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from toy_latents import CONDITIONS, SIZE, clusters

from fedgen.data.seeds import seeded
from fedgen.errors import ConfigError, DataError
from fedgen.models.generators import KINDS, Generator, Part, open_generator
from fedgen.models.generators.density import ClassStatistics
from fedgen.models.generators.gaussian import GaussianGenerator
from fedgen.models.generators.loop import Batch
from fedgen.models.generators.neural import NeuralGenerator
from fedgen.models.generators.vae import VAEGenerator, vae_losses
from fedgen.models.settings import GeneratorSettings, GeneratorTraining, Schedule

TRAINING = GeneratorTraining(epochs=3, batch_size=8, lr=5e-3, noise=0.1)
NEURAL = sorted(kind for kind, made in KINDS.items() if issubclass(made, NeuralGenerator))


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def fresh() -> Callable[[str], Generator]:
    def make(kind: str) -> Generator:
        settings = GeneratorSettings(kind=kind, width=16, latents=4, embedding=8, training=TRAINING)
        generator = open_generator(settings, SIZE, CONDITIONS)
        generator.initialise(seed=5)
        return generator

    return make


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def draw(generator: Generator, label: int) -> Tensor:
    return generator.sample(label, 4, torch.Generator().manual_seed(3))


def test_first_weights_follow_from_their_seed(kind: str, fresh: Callable[[str], Generator]) -> None:
    assert same(fresh(kind).shared_state(), fresh(kind).shared_state())
    other = fresh(kind)
    other.initialise(seed=6)
    assert same(other.shared_state(), fresh(kind).shared_state()) == (kind not in NEURAL)


def test_state_travels_as_plain_tensors(kind: str, fresh: Callable[[str], Generator]) -> None:
    generator = fresh(kind)
    losses = generator.fit(Part(*clusters([9, 9, 9]), seed=0), schedule=Schedule())
    assert len(losses) == (1 if generator.restarts else TRAINING.epochs)
    for name, value in generator.shared_state().items():
        assert value.dtype in (torch.float32, torch.int64), name
        assert value.device.type == "cpu"


@pytest.mark.parametrize("kind", NEURAL)
def test_training_goes_on_at_another_node_as_if_it_had_never_moved(
    kind: str, fresh: Callable[[str], Generator]
) -> None:
    """Two nodes train one after the other; a single generator that is never taken apart sees the same."""
    nodes = [clusters([9, 9, 2]), clusters([4, 4, 12])]
    live, first, second = fresh(kind), fresh(kind), fresh(kind)
    for number, (latents, labels) in enumerate(nodes):
        live.fit(Part(latents, labels, number), schedule=Schedule(number, 2))
    first.fit(Part(*nodes[0], 0), schedule=Schedule(0, 2))
    second.load_shared_state(first.shared_state())
    second.fit(Part(*nodes[1], 1), schedule=Schedule(1, 2))
    assert same(second.shared_state(), live.shared_state())


def test_two_nodes_in_turn_equal_one_plain_loop(fresh: Callable[[str], Generator]) -> None:
    """What `fit_shared` does, written out: one model and one AdamW that never rest, the same batches in order."""
    nodes = [clusters([9, 9, 2]), clusters([4, 4, 12])]
    plain = fresh("vae")
    assert isinstance(plain, VAEGenerator)
    optimizer = torch.optim.AdamW(plain.model.parameters(), weight_decay=TRAINING.weight_decay, fused=True)
    for call, (latents, _) in enumerate(nodes):
        shuffle, noise = seeded(call, "shuffle"), seeded(call, "noise")
        rows = torch.randperm(20, generator=seeded(0, "validation"))  # nothing is held out
        step, steps = 0, 3 * TRAINING.epochs  # 20 rows: 3 batches of at most 8
        for _ in range(TRAINING.epochs):
            order = rows[torch.randperm(20, generator=shuffle)]
            codes, inputs = torch.randn(20, 4, generator=noise), torch.randn(20, SIZE, generator=noise)
            for places in torch.arange(20).split(8):
                optimizer.param_groups[0]["lr"] = TRAINING.lr * Schedule(call, 2).rate(step, steps, TRAINING.warmup)
                batch = Batch(
                    rows={"values": latents[order[places]], "classes": torch.zeros(len(places), 0)},
                    tables={},
                    noise={"codes": codes[places], "input": inputs[places]},
                    share=torch.full((len(places),), 1 / len(places)),
                    progress=torch.tensor((call + step / steps) / 2),
                )
                optimizer.zero_grad()
                vae_losses(plain.model, batch, TRAINING)[-1].backward()
                torch.nn.utils.clip_grad_norm_(plain.model.parameters(), TRAINING.clip)
                optimizer.step()
                step += 1
    first, second = fresh("vae"), fresh("vae")
    first.fit(Part(*nodes[0], 0), schedule=Schedule(0, 2))
    second.load_shared_state(first.shared_state())
    second.fit(Part(*nodes[1], 1), schedule=Schedule(1, 2))
    state = second.shared_state()
    for name, parameter in plain.model.named_parameters():
        assert torch.equal(state[f"model.{name}"], parameter.detach())
        for moment in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(state[f"optimizer.{moment}.{name}"], optimizer.state[parameter][moment])


@pytest.mark.parametrize("kind", NEURAL)
def test_a_mean_of_equal_states_is_the_state(kind: str, fresh: Callable[[str], Generator]) -> None:
    generator = fresh(kind)
    assert same(KINDS[kind].merge([generator.shared_state()] * 2, [1, 2]), generator.shared_state())
    generator.fit(Part(*clusters([9, 9, 9]), seed=0), schedule=Schedule())
    state = generator.shared_state()
    assert same(KINDS[kind].merge([state] * 3, [0.1, 7, 13]), state)


@pytest.mark.parametrize("kind", NEURAL)
def test_a_mean_weighs_states_by_their_clips(kind: str, fresh: Callable[[str], Generator]) -> None:
    states = []
    for number, counts in enumerate([(9, 9, 2), (4, 0, 0)]):
        generator = fresh(kind)
        generator.fit(Part(*clusters(counts), number), schedule=Schedule())
        states.append(generator.shared_state())
    merged = KINDS[kind].merge(states, [3, 1])
    for name, value in merged.items():
        expected = 0.75 * states[0][name] + 0.25 * states[1][name]
        expected = expected.round() if name.startswith("optimizer.step.") else expected  # 9 and 3 steps: 7.5
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-6)
    fresh(kind).load_shared_state(merged)


@pytest.mark.parametrize("kind", NEURAL)
def test_means_of_states_that_do_not_match_are_errors(kind: str, fresh: Callable[[str], Generator]) -> None:
    state = fresh(kind).shared_state()
    name = next(iter(state))
    missing = {other: state[other] for other in state if other != name}
    for other in (missing, {**state, name: torch.zeros(1)}, {**state, name: state[name] * torch.nan}):
        with pytest.raises(DataError, match=name):
            KINDS[kind].merge([state, other], [1, 1])
    with pytest.raises(DataError, match="positive weight"):
        KINDS[kind].merge([state, state], [1, 0])


def test_a_bad_state_changes_nothing(kind: str, fresh: Callable[[str], Generator]) -> None:
    generator = fresh(kind)
    generator.fit(Part(*clusters([9, 9, 9]), seed=0), schedule=Schedule())
    state = generator.shared_state()
    for name in list(state)[-4:]:
        value = state[name].double()
        broken: list[dict[str, Tensor]] = [
            {**state, name: value * torch.nan},
            {**state, name: torch.zeros(1, 1, 1, 1)},
            {other: state[other] for other in state if other != name},
            {**state, f"{name}.more": value},
        ]
        for bad in broken:
            with pytest.raises(DataError):
                generator.load_shared_state(bad)
            assert same(generator.shared_state(), state)


def test_a_settled_generator_samples_and_is_whole(kind: str, fresh: Callable[[str], Generator]) -> None:
    """Another node's weights, the node's own classes: what it saves is complete."""
    sender, receiver, twin = fresh(kind), fresh(kind), fresh(kind)
    latents, labels = clusters([9, 9, 9])
    sender.fit(Part(latents, labels, 0), schedule=Schedule())
    receiver.load_shared_state(sender.shared_state())
    with pytest.raises(DataError, match="not fitted"):
        draw(receiver, 1)
    receiver.finalize(latents[labels == 1], labels[labels == 1])
    assert draw(receiver, 1).isfinite().all()
    twin.load_state(receiver.state())
    assert torch.equal(draw(twin, 1), draw(receiver, 1))


def test_a_shared_generator_takes_latents_as_they_are(fresh: Callable[[str], Generator]) -> None:
    latents, labels = clusters([9, 9, 9])
    own, shared = fresh("vae"), fresh("vae")
    own = open_generator(own.settings, SIZE)
    own.fit(Part(latents, labels, seed=0))
    shared.fit(Part(latents, labels, 0), schedule=Schedule())
    assert isinstance(own, VAEGenerator)
    assert isinstance(shared, VAEGenerator)
    assert own.mean.abs().max() > 0.1
    assert shared.mean.abs().max() == 0
    assert shared.deviation == 1


# Gaussians


def test_shared_gaussians_are_those_of_all_clips_together(fresh: Callable[[str], Generator]) -> None:
    """In turn or merged, from any split of the clips, also of one class."""
    latents, labels = clusters([20, 12, 6])
    latents = latents[torch.randperm(38, generator=torch.Generator().manual_seed(0))]
    parts = [torch.arange(38) % 2 == 0, torch.arange(38) % 2 == 1]
    whole = fresh("gaussian")
    whole.fit(Part(latents, labels, seed=0))
    turns, states = fresh("gaussian"), []
    for part in parts:
        turns.fit(Part(latents[part], labels[part], 0), schedule=Schedule())
        one = fresh("gaussian")
        one.fit(Part(latents[part], labels[part], 0), schedule=Schedule())
        states.append(one.shared_state())
    merged = fresh("gaussian")
    merged.load_shared_state(GaussianGenerator.merge(states, [1, 1]))
    for generator in (turns, merged):
        generator.finalize(latents, labels)
        torch.testing.assert_close(generator.state(), whole.state(), atol=1e-3, rtol=1e-3)  # float32 sums


@pytest.mark.parametrize("count", [1, 2])
def test_clips_that_statistics_would_give_away_are_not_shared(fresh: Callable[[str], Generator], count: int) -> None:
    with pytest.raises(ConfigError, match=r"ids \[1\] have fewer than 3.*use sharing=local"):
        fresh("gaussian").fit(Part(*clusters([9, count, 9]), 0), schedule=Schedule())


def test_statistics_that_cannot_be_are_refused() -> None:
    good = ClassStatistics.measure(torch.randn(8, 2), torch.arange(8) % 2).state()
    for bad in ({"classes": torch.tensor([1, 0])}, {"counts": torch.tensor([4, 0])}):
        with pytest.raises(DataError, match=r"statistics of classes|which do not ascend"):
            ClassStatistics.from_state(good | bad, size=2)


def test_nothing_shared_is_nothing_to_settle_on(fresh: Callable[[str], Generator]) -> None:
    with pytest.raises(DataError, match="no shared statistics"):
        fresh("gaussian").finalize(*clusters([9, 9, 9]))
