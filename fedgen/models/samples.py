"""Synthetic samples as sources of token sequences and summaries, and pools of several sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedgen.data.seeds import seeded
from fedgen.data.tokens import SummarySource
from fedgen.errors import DataError
from fedgen.models.codec import Codec
from fedgen.models.states import check_tensors, length_of

DECODED = 64  # samples that are decoded at a time for statistics


@dataclass(eq=False)
class SyntheticTokens:
    """A `TokenSource` and a `SummarySource` of generated samples, decoded on ``device``."""

    codec: Codec  # decoder of the latents
    values: Tensor  # latents (N, k); with a scale, whole numbers that it multiplies
    labels: Tensor  # global class ids (N,)
    seed: int = 0  # of the residual noise, which is drawn anew each time a sample is decoded
    device: torch.device | str = "cpu"
    scale: Tensor | None = None  # (k,): samples that came over the wire stay at a byte a coefficient

    def __post_init__(self) -> None:
        self.codec, self.shape, self.labels = self.codec.to(self.device), self.codec.shape, self.labels.long().cpu()
        self.values = (self.values.float() if self.scale is None else self.values).to(self.device)
        self.scale = None if self.scale is None else self.scale.to(self.device)
        self._noise = seeded(self.seed, "residual", device=self.device)

    @property
    def latents(self) -> Tensor:
        """All latents, ``(N, k)``, float32."""
        return self.latents_at(torch.arange(len(self)))

    def latents_at(self, indices: Tensor) -> Tensor:
        """Return the latents of the samples at ``indices`` ``(B,)``, ``(B, k)``, float32."""
        rows = self.values[indices.to(self.device)]
        return rows if self.scale is None else rows * self.scale

    def at(self, chosen: Tensor) -> SyntheticTokens:
        """Return the samples at a mask or indices ``chosen``, with their noise from its start."""
        return replace(self, values=self.values[chosen.to(self.device)], labels=self.labels[chosen])

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        """Decode the samples at ``indices`` ``(B,)`` to ``(B, S, D)``, float32."""
        return self.codec.decode(self.latents_at(indices), self._noise)

    def summaries(self, indices: Tensor) -> Tensor:
        """Return the summaries ``(B, F)`` of the samples at ``indices`` ``(B,)``: what adapters train on."""
        return self.codec.summaries(self.latents_at(indices), self._noise)

    def segments(self, indices: Tensor, count: int) -> Tensor:
        """Return the mean tokens of ``count`` stretches of the samples at ``indices`` ``(B,)``: ``(B, count, D)``.

        Samples are not decoded: a mean passes through the basis.
        """
        means = torch.stack([part.mean(dim=0) for part in self.codec.positions.tensor_split(count)])
        return means @ (self.codec.cores(self.latents_at(indices), self._noise) @ self.codec.channels.T)

    def to(self, device: torch.device | str) -> SyntheticTokens:
        """Return the samples on ``device``, with their noise from its start."""
        return replace(self, device=device)

    def state(self) -> dict[str, Tensor]:
        """Return the samples as tensors by name, to be saved beside the seed; the codec is public."""
        scale = {} if self.scale is None else {"latent-scale": self.scale}
        return {"latents": self.values, "labels": self.labels, **scale}

    @classmethod
    def from_state(cls, state: dict[str, Tensor], codec: Codec, seed: int) -> SyntheticTokens:
        """Rebuild the samples of `state` on the CPU, with their noise from its start.

        Raises
        ------
        DataError
            A tensor is missing, unknown or of another shape; the samples are of a run whose nodes fitted codecs.
        """
        if any(name.startswith("codec.") for name in state):
            raise DataError("these samples were saved with a codec of a node's own clips, as is no more: run anew")
        count, size = length_of(state, "labels"), codec.size
        expected = {"latents": (count, size), "labels": (count,)}
        check_tensors(state, expected | ({"latent-scale": (size,)} if "latent-scale" in state else {}))
        return cls(codec, state["latents"], state["labels"], seed, scale=state.get("latent-scale"))

    def counts(self) -> dict[int, int]:
        """Return the number of samples of each class id."""
        return class_counts(self.labels)

    def statistics(self, per_class: int = 1) -> dict[str, float | dict[int, int]]:
        """Return mean, std, min and max of decoded tokens, and ``counts``, the samples of each class id.

        The first ``per_class`` samples of each class are decoded for this alone; without samples there are only counts.
        """
        if not len(self):
            return {"counts": {}}
        chosen = torch.cat([(self.labels == label).nonzero()[:per_class, 0] for label in self.counts()])
        twin = self.to(self.device)  # draws noise of its own: the samples stay what they were
        rows = [_summary(twin.batch(indices)) for indices in chosen.split(DECODED)]
        mean, square, low, high = torch.stack(rows).unbind(dim=1)
        weights = torch.tensor([len(part) / len(chosen) for part in chosen.split(DECODED)]).to(mean)
        centre = (weights * mean).sum()
        spread = ((weights * square).sum() - centre.square()).clamp(min=0).sqrt()
        values = torch.stack([centre, spread, low.min(), high.max()]).tolist()
        return {**dict(zip(("mean", "std", "min", "max"), values, strict=True)), "counts": self.counts()}


class PooledSummaries:
    """The summaries of several sources, such as the samples of several nodes, as one."""

    def __init__(self, parts: Sequence[SummarySource]) -> None:
        self.parts = [part for part in parts if len(part)]
        self.labels = torch.cat([part.labels for part in self.parts])
        self._starts = torch.tensor([0, *(len(part) for part in self.parts)]).cumsum(0)  # (parts + 1,)

    def __len__(self) -> int:
        return len(self.labels)

    def summaries(self, indices: Tensor) -> Tensor:
        """Return the summaries ``(B, F)`` at ``indices`` ``(B,)``; each part's are read at once."""
        origins = torch.bucketize(indices, self._starts[1:], right=True)  # (B,)
        places = [(origins == number).nonzero().squeeze(1) for number in range(len(self.parts))]
        pairs = zip(self.parts, places, self._starts.tolist(), strict=False)
        found = torch.cat([part.summaries(indices[rows] - start) for part, rows, start in pairs if len(rows)])
        return found[torch.cat(places).argsort().to(found.device)]

    def counts(self) -> dict[int, int]:
        """Return the number of samples of each class id."""
        return class_counts(self.labels)


def _summary(tokens: Tensor) -> Tensor:
    """Return mean, mean square, least and largest of the values of ``tokens`` ``(4,)``, float64."""
    values = tokens.double()
    return torch.stack([values.mean(), values.square().mean(), values.min(), values.max()])


def class_counts(labels: Tensor) -> dict[int, int]:
    """Return how often each class id occurs in ``labels``."""
    classes, counts = labels.unique(return_counts=True)
    return dict(zip(classes.tolist(), counts.tolist(), strict=True))
