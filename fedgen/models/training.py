"""Training of adapters on targets, and distillation from the nodes' adapters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from fedgen.data.tokens import SummarySource
from fedgen.models.adapters import Adapters
from fedgen.models.memory import BatchLimit
from fedgen.models.settings import Schedule, TrainingSettings
from fedgen.models.states import load_optimizer_tensors, optimizer_tensors


def sample_losses(
    outputs: dict[str, Tensor], targets: dict[str, Tensor], labels: Tensor, settings: TrainingSettings
) -> dict[str, Tensor]:
    """Return the loss of every head and sample, ``(B,)``.

    Parameters
    ----------
    outputs : dict[str, Tensor]
        ``{head: (B, *shape)}``.
    targets : dict[str, Tensor]
        ``{head: (C, *shape)}``: the target of every class.
    labels : Tensor
        Class ids ``(B,)`` on the outputs' device.
    settings : TrainingSettings

    Raises
    ------
    ValueError
        An output's shape is not its target's: broadcasting would silently learn the batch mean.
    """
    losses = {}
    for name, output in outputs.items():
        wanted = targets[name][labels]
        if output.shape != wanted.shape:
            raise ValueError(f"head '{name}' gives {tuple(output.shape)} where its target is {tuple(wanted.shape)}")
        error = (output - wanted).square().flatten(1).mean(dim=1) / targets[name].square().mean()
        cosines = F.normalize(output.flatten(1), dim=1) @ F.normalize(targets[name].flatten(1), dim=1).T  # (B, C)
        contrast = F.cross_entropy(cosines / settings.temperature, labels, reduction="none")
        losses[name] = settings.mse_weight * error + settings.contrastive_weight * contrast
    return losses


def target_losses(
    outputs: dict[str, Tensor], targets: dict[str, Tensor], labels: Tensor, settings: TrainingSettings
) -> dict[str, Tensor]:
    """Return the mean of `sample_losses` of every head."""
    return {name: loss.mean() for name, loss in sample_losses(outputs, targets, labels, settings).items()}


@torch.no_grad()
def clip_losses(
    adapters: Adapters, source: SummarySource, targets: dict[str, Tensor], settings: TrainingSettings, rows: int = 64
) -> Tensor:
    """Return the loss of each clip of ``source`` ``(N,)``, summed over heads, on the CPU."""
    device = next(adapters.parameters()).device
    targets = {name: value.to(device) for name, value in targets.items()}
    adapters.eval()
    found = []
    for indices in torch.arange(len(source)).split(rows):
        labels, outputs = source.labels[indices].to(device), adapters(source.summaries(indices))
        found.append(torch.stack(list(sample_losses(outputs, targets, labels, settings).values())).sum(dim=0).cpu())
    return torch.cat(found)


@contextmanager
def reproducible(seed: int, device: torch.device) -> Iterator[torch.Generator]:
    """Seed torch for a block and give the caller's random state back after it; yields a CPU generator for shuffling."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class TrainingOptions:
    """Circumstances of one call of `train_adapters`.

    A smaller limit needs less memory for the same result, up to rounding and dropout.
    """

    schedule: Schedule = field(default_factory=Schedule)  # place of the call in a training of several calls
    proximal_mu: float = 0.0  # weight of half the squared distance to the start (FedProx, Li et al., MLSys 2020)
    limit: BatchLimit = field(default_factory=BatchLimit)  # samples in one backward pass: a whole batch by default
    teachers: Teachers | None = None  # adapters to learn from as well


def train_adapters(
    adapters: Adapters,
    source: SummarySource,
    targets: dict[str, Tensor],
    settings: TrainingSettings,
    seed: int,
    optimizer_state: dict[str, Tensor] | None = None,
    options: TrainingOptions | None = None,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Train ``adapters`` in place.

    Parameters
    ----------
    adapters : Adapters
        On the device to train on.
    source : TokenSource
        The samples; batches arrive on the adapters' device.
    targets : dict[str, Tensor]
        ``{head: (C, *shape)}``, the target of every class.
    settings : TrainingSettings
    seed : int
        Of the order of the batches and of dropout.
    optimizer_state : dict[str, Tensor], optional
        Returned by an earlier call: moments go on where they were.
    options : TrainingOptions, optional

    Returns
    -------
    losses : dict[str, float]
        ``loss`` and ``{head}_loss``, means over the last epoch.
    optimizer_state : dict[str, Tensor]
        AdamW's moments and step counts by parameter name, on the CPU.
    """
    options = options or TrainingOptions()
    device = next(adapters.parameters()).device
    targets = {name: value.to(device) for name, value in targets.items()}
    optimizer = torch.optim.AdamW(
        adapters.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=device.type == "cuda"
    )
    if optimizer_state:
        load_optimizer_tensors(adapters, optimizer, optimizer_state)
    anchor = [p.detach().clone() for p in adapters.parameters()] if options.proximal_mu else []
    steps = settings.epochs * math.ceil(len(source) / settings.batch_size)
    means: list[float] = []
    adapters.train()
    with reproducible(seed, device) as generator:
        for epoch in range(settings.epochs):
            sums = torch.zeros(len(adapters.heads) + 1, device=device)
            batches = torch.randperm(len(source), generator=generator).split(settings.batch_size)
            for position, indices in enumerate(batches):
                rate = options.schedule.rate(epoch * len(batches) + position, steps, settings.warmup)
                for group in optimizer.param_groups:
                    group["lr"] = settings.lr * rate
                share = partial(contribution, adapters, source, targets, settings, options.teachers, len(indices))
                sums += options.limit.backward(indices, share, optimizer.zero_grad) * len(indices)
                if anchor:
                    pull(adapters, anchor, options.proximal_mu)
                torch.nn.utils.clip_grad_norm_(adapters.parameters(), settings.clip)
                optimizer.step()
            means = (sums / len(source)).tolist()
    adapters.eval()
    losses = dict(zip([*(f"{name}_loss" for name in adapters.heads), "loss"], means, strict=True))
    return losses, {name: value.cpu() for name, value in optimizer_tensors(adapters, optimizer).items()}


def contribution(
    adapters: Adapters,
    source: SummarySource,
    targets: dict[str, Tensor],
    settings: TrainingSettings,
    teachers: Teachers | None,
    count: int,
    indices: Tensor,
) -> Tensor:
    """Return the part of a batch of ``count`` in its losses: each head's, and their sum.

    On a GPU the adapters compute in bfloat16, whose range is that of float32; losses are taken in float32.
    """
    device = next(adapters.parameters()).device
    labels, clips = source.labels[indices], source.summaries(indices)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        outputs = {name: value.float() for name, value in adapters(clips).items()}
        taught = teachers.losses(outputs, clips, labels, targets) if teachers else None
    heads = target_losses(outputs, targets, labels.to(device, non_blocking=True), settings)
    losses = torch.stack(list(heads.values()))  # (H,)
    if teachers and taught is not None:
        losses = torch.lerp(losses, taught, teachers.weight)
    return torch.cat([losses, losses.sum(dim=0, keepdim=True)]) * (len(indices) / count)


@torch.no_grad()
def pull(adapters: Adapters, anchor: list[Tensor], mu: float) -> None:
    """Add the gradient of ``mu / 2`` times the squared distance of the weights to ``anchor``: once for each step."""
    for parameter, start in zip(adapters.parameters(), anchor, strict=True):
        assert parameter.grad is not None
        parameter.grad.add_(parameter - start, alpha=mu)


@dataclass(eq=False)
class Teachers:
    """The nodes' adapters as teachers; a sample counts those with clips of its class, weighted by their clips.

    References
    ----------
    Lin et al., "Ensemble Distillation for Robust Model Fusion in Federated Learning", NeurIPS 2020; there all teachers
    count alike.
    """

    adapters: Adapters  # any of the teachers' shape, on the device to work on
    states: Mapping[int, Mapping[str, Tensor]]  # weights of adapters, by the node's number
    counts: Mapping[int, Mapping[int, int]]  # clips of each class id, by the node's number
    classes: int  # number of classes C
    weight: float = 0.5  # share of the loss that is the distance to the teachers

    def __post_init__(self) -> None:
        device = next(self.adapters.parameters()).device
        self.adapters = deepcopy(self.adapters).eval()
        moved = {number: {n: v.to(device) for n, v in state.items()} for number, state in self.states.items()}
        self.states, shares = moved, torch.zeros(len(moved), self.classes)  # (T, C)
        for row, number in enumerate(self.states):
            for label, count in self.counts[number].items():
                shares[row, label] = count
        self.shares = shares / shares.sum(dim=0).clamp(min=1)

    @torch.no_grad()
    def outputs(self, clips: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the teachers' mean output for each sample, ``{head: (B, *shape)}``, float32.

        It is NaN where no teacher has clips of the class. ``clips`` are summaries ``(B, F)`` on the adapters' device,
        ``labels`` ``(B,)`` are on the CPU.
        """
        means: dict[str, Tensor] = {}
        weights = self.shares[:, labels]  # (T, B)
        for state, own in zip(self.states.values(), weights, strict=True):
            rows = own.nonzero().squeeze(1)
            if not len(rows):
                continue
            found: dict[str, Tensor] = functional_call(self.adapters, dict(state), (clips[rows.to(clips.device)],))
            for name, output in found.items():
                if name not in means:
                    means[name] = output.new_zeros((len(labels), *output.shape[1:]), dtype=torch.float32)
                weighted = output.float() * own[rows].to(output.device).view(-1, *[1] * (output.dim() - 1))
                means[name].index_add_(0, rows.to(output.device), weighted)
        for mean in means.values():
            mean[(weights.sum(dim=0) == 0).to(mean.device)] = torch.nan
        return means

    def losses(self, outputs: dict[str, Tensor], clips: Tensor, labels: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Return each head's mean squared distance to its teachers, relative to the targets' mean square, ``(H,)``.

        Samples without a teacher count as 0.
        """
        taught = self.outputs(clips, labels)
        errors = []
        for name, output in outputs.items():
            wanted = taught[name] if name in taught else torch.full_like(output, torch.nan)
            error = (output - torch.where(wanted.isnan(), output.detach(), wanted)).square().mean()
            errors.append(error / targets[name].square().mean())
        return torch.stack(errors)
