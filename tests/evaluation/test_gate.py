"""The gate: leaks fail it, fresh records and every shipped generator pass it, few records are not judged."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from clouds import between, copies, fresh, interpolations, recordings, site
from fedgen.evaluation.gate import FAILED, PASSED, UNKNOWN, EvaluationSettings, Verdict, judge
from fedgen.evaluation.privacy import Site, measure_privacy

from fedgen.data.tokens import TokenSource
from fedgen.errors import ConfigError
from fedgen.evaluation.features import Records, read_records
from fedgen.models.bases import CodecSettings
from fedgen.models.codec import Codec
from fedgen.models.generators import KINDS
from fedgen.models.samples import SyntheticTokens
from fedgen.settings import Config
from fedgen.task import Task, prepare_task
from fedgen.training.bank import Bank

SETTINGS = EvaluationSettings()


def verdict(synthetic: Records, settings: EvaluationSettings = SETTINGS) -> Verdict:
    return judge(measure_privacy({0: site(synthetic)}, seed=0), settings)


def test_fresh_records_pass() -> None:
    half = Records(recordings(40, seed=3).segments * 1.02, recordings(40, seed=3).labels)
    assert verdict(half, replace(SETTINGS, min_distance_ratio=0.95)) == Verdict(PASSED, [])


@pytest.mark.parametrize(
    "leak", [copies(), copies(0.05), copies(0.2), interpolations()], ids=["copies", "near", "noisy", "between"]
)
def test_leaks_fail_with_every_reason(leak: Records) -> None:
    found = verdict(leak)
    assert found.verdict == FAILED
    for key in ("min_distance_ratio", "max_near_copies", "max_membership_auc"):
        assert any(f"evaluation.{key}=" in reason for reason in found.reasons)


def test_each_limit_can_be_moved() -> None:
    settings = EvaluationSettings(min_distance_ratio=0, max_near_copies=1, max_membership_auc=1)
    assert verdict(copies(), settings).verdict == PASSED


def test_few_held_out_records_are_not_judged() -> None:
    report = measure_privacy({0: site(copies(), held_out=4)}, seed=0)  # 16 of 4 classes
    found = judge(report, SETTINGS)
    assert found == Verdict(UNKNOWN, ["16 held-out records are fewer than evaluation.min_held_out=30"])
    assert judge(None, SETTINGS).verdict == UNKNOWN
    assert judge(report, replace(SETTINGS, min_held_out=16)).verdict == FAILED


def test_chance_alone_does_not_fail_the_membership_auc() -> None:
    report = measure_privacy({0: site(fresh())}, seed=0)
    assert report is not None
    above = replace(report.overall, membership_auc=0.65, membership_error=0.05, distance_ratio=1.1)
    unsure = replace(report, overall=above)
    assert judge(unsure, SETTINGS).verdict == PASSED
    assert judge(unsure, replace(SETTINGS, standard_errors=0)).verdict == FAILED
    assert judge(replace(report, overall=replace(above, membership_error=0.02)), SETTINGS).verdict == FAILED


def test_one_leaking_node_is_not_hidden_by_many() -> None:
    sites = {number: site(fresh()) for number in range(30)} | {30: site(copies())}
    found = judge(measure_privacy(sites, seed=0), replace(SETTINGS, min_distance_ratio=0))
    assert found.verdict == FAILED
    assert ["of node 30" in reason for reason in found.reasons] == [True]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"gate": "maybe"}, "evaluation.gate='maybe' is not one of off, warn, fail"),
        ({"probes": ["deep"]}, "evaluation.probes='deep'"),
        ({"max_near_copies": 1.5}, "evaluation.max_near_copies=1.5 must be between 0 and 1"),
        ({"max_membership_auc": 0.2}, "evaluation.max_membership_auc=0.2"),
        ({"min_held_out": 1}, "evaluation.min_held_out=1"),
    ],
)
def test_settings_are_checked(values: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EvaluationSettings(**values)


@pytest.fixture(scope="module")
def sounds(tiny: Callable[..., Config]) -> Task:
    """Synthesised sounds, enough of them for a verdict: 6 classes of 12 clips, and 6 of each held out."""
    return prepare_task(
        tiny("data.clips_per_class=18", "data.folds=3", "partition.nodes=1", "generator.training.epochs=30")
    )


@pytest.fixture(scope="module")
def clips(sounds: Task) -> tuple[TokenSource, TokenSource]:
    return sounds.tokens(sounds.parts[0]), sounds.test_tokens()


def judged(clips: tuple[TokenSource, TokenSource], samples: TokenSource) -> Verdict:
    site = Site(*(read_records(source) for source in (*clips, samples)))
    return judge(measure_privacy({0: site}, seed=0), SETTINGS)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_shipped_kinds_pass(kind: str, sounds: Task, clips: tuple[TokenSource, TokenSource]) -> None:
    settings = replace(sounds.config.generator, kind=kind)
    bank = Bank(settings, sounds.granularity, sounds.classes, sounds.space, sounds.targets.conditions())
    bank.fit(clips[0], seed=0)
    samples = bank.sample(dict.fromkeys(range(len(sounds.classes)), 32), seed=1)
    assert judged(clips, samples) == Verdict(PASSED, [])


@pytest.mark.parametrize("noise", [None, 0.0, 0.3], ids=["interpolations", "copies", "noisy copies"])
def test_leaks_of_real_tokens_fail(noise: float | None, sounds: Task, clips: tuple[TokenSource, TokenSource]) -> None:
    """Between two clips of a class, or a clip with noise: in the codec's latents, and with its residual noise."""
    train, generator = clips[0], torch.Generator().manual_seed(0)
    codec = Codec.fit(train, CodecSettings())
    latents = codec.encode_all(train)
    labels = torch.arange(len(sounds.classes)).repeat_interleave(32)
    if noise is None:
        parts = [between(latents[train.labels == label], 32, generator) for label in labels.unique()]
    else:
        own = [latents[train.labels == label] for label in labels.unique()]
        parts = [x[torch.randint(len(x), (32,), generator=generator)] for x in own]
        parts = [x + noise * latents.std(dim=0) * torch.randn(x.shape, generator=generator) for x in parts]
    found = judged(clips, SyntheticTokens(codec, torch.cat(parts), labels))
    assert found.verdict == FAILED
