"""Audit of a run: everything that nodes sent against the clips that they trained on and their controls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgen.data.tokens import LazyTokens, Summaries, TokenSource, rows_at_once
from fedgen.models.bases import Bases
from fedgen.models.generators.density import FEW
from fedgen.models.training import clip_losses
from fedgen.privacy.attacks import all_scores
from fedgen.privacy.evidence import Candidates, Draw, GaussianFit, Release
from fedgen.privacy.gate import judge
from fedgen.privacy.result import Report, measure
from fedgen.task import Task

BATCH = 64  # clips that are on the device at a time
AUDIT = "audit.json"  # in the run folder
DELTA = 1e-5  # of the bound on epsilon, where the run names none

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Sent:
    """Everything that one node sent, as an observer of all messages has it."""

    latents: Tensor  # samples of all known rounds (M, k)
    labels: Tensor  # (M,)
    adapters: Sequence[tuple[Weights, Weights]] = ()  # of each known round: sent to the node, and in its reply
    arrays: Mapping[str, Tensor] = field(default_factory=dict)  # everything else


@dataclass(frozen=True)
class Clips:
    """Clips of the store that one node trained on, and its controls: indices ``(n,)``."""

    members: np.ndarray
    controls: np.ndarray


def audit_run(task: Task, sent: Mapping[int, Sent], clips: Mapping[int, Clips]) -> Report | None:
    """Attack all that nodes sent, by the node's number; None if nothing can be compared.

    ``task`` is that of a machine that has the clips.
    """
    nodes = sorted(set(sent) & set(clips))
    if not nodes:
        return None
    candidates = _candidates(task, {node: clips[node] for node in nodes})
    settings = task.config.evaluation
    releases = _releases(task, {node: sent[node] for node in nodes}, candidates)
    losses = _losses(task, {node: sent[node] for node in nodes}, candidates, clips)
    delta = task.config.privacy.delta or DELTA
    scores = all_scores(candidates, releases, losses, settings.shadows, task.seed("audit"))
    return measure(scores, candidates, delta)


def verdict_of(task: Task, report: Report | None) -> dict[str, Any]:
    """Return the gate's verdict on an audit as JSON values.

    They are ``setting``, ``verdict``, ``reasons``, ``summary`` and ``auc``, of the strongest attack (None without any).
    """
    strongest = None if report is None else report.worst("overall")
    auc = None if strongest is None else strongest.figures.auc
    return {"setting": task.config.gate, **asdict(judge(report, task.config.evaluation)), "auc": auc}


def named(report: Report, classes: Sequence[str]) -> dict[str, Any]:
    """Return a report as JSON values, with the names of its classes by id: ``audit.json``."""
    return {**report.to_dict(), "names": list(classes)}


def _candidates(task: Task, clips: Mapping[int, Clips]) -> Candidates:
    """Return every clip of the nodes in the attacker's view, nodes in order, members before controls."""
    indices = np.concatenate([part for own in clips.values() for part in (own.members, own.controls)])
    nodes = [node for node, own in clips.items() for _ in range(len(own.members) + len(own.controls))]
    members = [flag for own in clips.values() for flag in [True] * len(own.members) + [False] * len(own.controls)]
    recordings = np.unique([task.store.recordings[index] for index in indices], return_inverse=True)[1]
    bases, cores = _features(task, task.tokens(indices))
    held_out = task.store.test_indices(task.config.data.test_fold)
    others = task.space.codec.encode_all(task.tokens(held_out)).cpu() if len(held_out) else None
    return Candidates(
        latents=task.space.codec.of_features(cores),
        labels=torch.from_numpy(task.store.labels[indices]),
        nodes=torch.tensor(nodes),
        members=torch.tensor(members),
        recordings=torch.from_numpy(recordings).long(),
        views={"cores": cores, "summaries": bases.summaries(cores)},
        others=others,
        other_labels=None if others is None else torch.from_numpy(task.store.labels[held_out]),
    )


def _features(task: Task, source: TokenSource) -> tuple[Bases, Tensor]:
    """Return the codec's bases, and the features ``(N, n)`` of clips on them, on the CPU."""
    codec = task.space.codec
    bases, rows = codec.to(task.device).bases, torch.arange(len(source)).split(rows_at_once(source, BATCH))
    return codec.bases, torch.cat([bases.project(source.batch(part)).cpu() for part in rows])


def _releases(task: Task, sent: Mapping[int, Sent], candidates: Candidates) -> list[Release]:
    """Return the release of each node, or one of all nodes where they share generators."""
    config = task.config
    shared = config.sharing.name == "shared"
    found = []
    for node, own in sent.items():
        arrays = {name: value.float() for name, value in own.arrays.items() if value.dim() == 2}
        for before, after in own.adapters[-1:]:
            arrays |= {f"adapters/{n}": after[n] - before[n] for n in after if after[n].dim() == 2}
        exact = config.generator.kind == "gaussian" and not config.privacy.used
        within = task.space.within if config.generator.covariance == "public" else None
        found.append(
            Release(
                nodes=tuple(sent) if shared else (node,),
                latents=own.latents,
                labels=own.labels,
                matrices=arrays,
                draw=None if shared or config.privacy.used else _drawing(task, candidates, own.labels),
                gaussian=GaussianFit(config.generator.shrinkage, within, FEW) if exact and not shared else None,
            )
        )
    return found[:1] if shared else found


def _drawing(task: Task, candidates: Candidates, labels: Tensor) -> Draw:
    """Return a function that fits the run's generators to some candidates, and draws as many samples as were sent."""
    counts = {label: count for label, count in Counter(labels.tolist()).items()}

    def draw(rows: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        bank = task.new_bank(task.granularity)
        bank.encode = lambda: candidates.latents[rows].to(task.device)
        bank.fit(LazyTokens(candidates.labels[rows], task.store.shape, _no_tokens), seed)
        own = {label: count for label, count in counts.items() if (candidates.labels[rows] == label).any()}
        samples = bank.sample(own, seed)
        return samples.latents, samples.labels

    return draw


def _no_tokens() -> TokenSource:
    raise AssertionError("shadow generators are fitted to latents alone")


def _losses(
    task: Task, sent: Mapping[int, Sent], candidates: Candidates, clips: Mapping[int, Clips]
) -> tuple[Tensor, Tensor] | None:
    """Return the loss of each candidate under the adapters that its node was sent and under its reply's, by round."""
    rounds = max((len(own.adapters) for own in sent.values()), default=0)
    if not rounds:
        return None
    found = torch.full((2, rounds, len(candidates)), torch.nan)
    adapters = task.adapters()
    targets, training = task.targets.heads, task.config.adapter.training
    for node, own in sent.items():
        rows = (candidates.nodes == node).nonzero()[:, 0]
        source = Summaries(candidates.views["summaries"][rows].to(task.device), candidates.labels[rows])
        for place, pair in enumerate(own.adapters):
            for side, weights in enumerate(pair):
                adapters.load_state_dict(dict(weights))
                found[side, place, rows] = clip_losses(adapters, source, targets, training)
    return found[0], found[1]
