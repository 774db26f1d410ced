"""The distribution of single values in a class's clips, which samples of a Gaussian lack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgen.data.seeds import seeded
from fedgen.models.codec import Codec
from fedgen.models.generators.density import FEW
from fedgen.models.states import ClassTensors, check_tensors, length_of

LEVELS = 100  # quantiles that describe a distribution
POINTS = 256  # of the map that follows from them
DRAWS = 256  # samples that tell what a generator's own distribution is
VALUES = 2**15  # of a channel, of all that there are, that quantiles are taken of
AT_ONCE = 64  # samples whose values are held at a time
TINY = torch.finfo(torch.float32).tiny

Draw = Callable[[int, int, torch.Generator], Tensor]
"""Draws latents ``(count, k)`` of a class, ``count`` and a random generator being given."""


@dataclass(eq=False)
class Marginals(ClassTensors):
    """Per-channel quantile mapping of samples to the marginal distribution of the class's clips.

    A Gaussian spreads rare, strong events, such as the ticks of a clock, evenly over all samples and positions. Here
    the deviation of each decoded basis channel from its mean, over all positions, is mapped quantile by quantile to the
    clips' distribution. Then every coefficient gets back the mean and the deviation that the generator gave it. Samples
    are mapped one by one: a sample does not depend on how many are drawn.

    Quantiles over all positions of all clips of a class are held, no clip. A class of fewer than `FEW` clips has none,
    and its samples stay as they are.

    References
    ----------
    Heeger and Bergen, "Pyramid-based texture analysis/synthesis", SIGGRAPH 1995 (matching histograms).
    """

    lows: Tensor  # first point of each table, in the generator's values (C, channels)
    steps: Tensor  # distance of its points (C, channels)
    tables: Tensor  # mapped value of each point (C, channels, POINTS); linear between two, a shift beyond the ends
    means: Tensor  # the generator's, of each coefficient (C, k)
    shifts: Tensor  # with gains, the map that restores mean and deviation of each coefficient (C, k)
    gains: Tensor  # (C, k)

    @classmethod
    def fit(cls, codec: Codec, latents: Tensor, labels: Tensor, draw: Draw, seed: int) -> Marginals:
        """Measure ``latents`` ``(N, k)`` of classes ``labels`` ``(N,)``, and `DRAWS` samples of each."""
        labels = labels.cpu()
        classes, counts = labels.unique(return_counts=True)
        rows = []
        for label in classes[counts >= FEW].tolist():
            own = latents[(labels == label).to(latents.device)]
            drawn = draw(label, DRAWS, seeded(seed, "marginals", label)).to(latents.device)
            table = _table(*(_quantiles(_values(codec, some, some.mean(0))) for some in (drawn, own)))
            mean = drawn.mean(0)
            mapped = _mapped(codec, drawn, mean, *table)
            gains = drawn.std(0) / mapped.std(0).clamp(min=TINY)
            rows.append((*table, mean, mean - mapped.mean(0) * gains, gains))
        if not rows:
            return cls.empty(codec)
        return cls(classes[counts >= FEW], *map(torch.stack, zip(*rows, strict=True)))

    @classmethod
    def empty(cls, codec: Codec) -> Marginals:
        """Return those of no class."""
        of_channels, of_latents = torch.zeros(0, codec.channels.shape[1]), torch.zeros(0, codec.size)
        tables = torch.zeros(*of_channels.shape, POINTS)
        none = torch.zeros(0, dtype=torch.long)
        return cls(none, of_channels, of_channels, tables, of_latents, of_latents, of_latents)

    def match(self, codec: Codec, label: int, latents: Tensor) -> Tensor:
        """Return samples ``latents`` ``(N, k)`` of a class, mapped, on the CPU."""
        if (row := self.row(label)) is None:
            return latents.cpu()
        own = {name: value[row].to(codec.mean.device) for name, value in self.state().items()}
        table = own["lows"], own["steps"], own["tables"]
        mapped = _mapped(codec, latents.to(codec.mean.device), own["means"], *table)
        return (mapped * own["gains"] + own["shifts"]).cpu()

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], codec: Codec) -> Marginals:
        """Rebuild those of samples in ``codec`` from `state`; `DataError` names a wrong or missing tensor."""
        count = length_of(state, "classes")
        channels, size = (count, codec.channels.shape[1]), (count, codec.size)
        shapes = {"classes": (count,), "lows": channels, "steps": channels, "tables": (*channels, POINTS)}
        check_tensors(state, shapes | dict.fromkeys(("means", "shifts", "gains"), size))
        return cls(**state)


def _values(codec: Codec, latents: Tensor, mean: Tensor) -> Tensor:
    """Return how the basis channels deviate from those of the latents ``mean`` ``(k,)``, ``(channels, N * P)``."""
    cores = codec.cores(latents) - codec.cores(mean[None])  # (N, A, channels)
    return (codec.positions @ cores).permute(2, 0, 1).flatten(1)


def _quantiles(values: Tensor) -> Tensor:
    """Return quantiles in the middle of `LEVELS` equal shares, ``(channels, LEVELS)``."""
    if values.shape[1] > VALUES:
        some = torch.randperm(values.shape[1], generator=seeded(0, "marginals"))[:VALUES]
        values = values[:, some.to(values.device)]
    count = values.shape[1]
    places = ((torch.arange(LEVELS) + 0.5) / LEVELS * count).long().clamp(max=count - 1)
    return values.sort(dim=1).values[:, places.to(values.device)]


def _table(drawn: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the map from quantiles ``drawn`` to ``real``: first point, distance of points, values."""
    low, high = drawn[:, :1], drawn[:, -1:]
    points = low + (high - low) * torch.linspace(0, 1, POINTS, device=low.device)  # (channels, POINTS)
    right = torch.searchsorted(drawn, points).clamp(1, LEVELS - 1)
    before, after, new_before, new_after = (q.gather(1, at) for q in (drawn, real) for at in (right - 1, right))
    share = ((points - before) / (after - before).clamp(min=TINY)).clamp(0, 1)
    return low[:, 0], (high - low)[:, 0] / (POINTS - 1), torch.lerp(new_before, new_after, share)


def _mapped(codec: Codec, latents: Tensor, mean: Tensor, low: Tensor, step: Tensor, table: Tensor) -> Tensor:
    """Return latents ``(N, k)`` whose channels are mapped by a table."""
    starts, slopes = _pieces(low, step, table)
    centre = codec.cores(mean[None])  # (1, A, channels)
    inverse = torch.linalg.pinv(codec.positions.T @ codec.positions, hermitian=True) @ codec.positions.T  # (A, P)
    found = []
    for part in latents.split(AT_ONCE):
        values = _values(codec, part, mean)  # (channels, n * P)
        place = (values - low[:, None]).div_(step.clamp(min=TINY)[:, None])
        piece = place.floor_().clamp_(-1, POINTS - 1).add_(1).long()
        new = torch.addcmul(starts.gather(1, piece), slopes.gather(1, piece), values)
        cores = centre + inverse @ new.view(len(new), len(part), -1).permute(1, 2, 0)
        rest = codec.features(part)[:, cores[0].numel() :]  # of the summary
        found.append(codec.of_features(torch.cat([cores.flatten(1), rest], dim=1)))
    return torch.cat(found)


def _pieces(low: Tensor, step: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Return the linear pieces of a table's map, ``(channels, POINTS + 1)``: value at 0, and slope (1 at both ends)."""
    points = low[:, None] + step[:, None] * torch.arange(POINTS, device=low.device)
    slopes = torch.ones(len(table), POINTS + 1, device=low.device)
    slopes[:, 1:-1] = table.diff(dim=1) / step.clamp(min=TINY)[:, None]
    at = torch.arange(POINTS + 1, device=low.device).sub(1).clamp(min=0)  # the point at which each piece is known
    return table[:, at] - slopes * points[:, at], slopes
