"""Sources of token sequences in low-rank bases: synthetic samples, projected clips, and pools of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from fedgen.data.seeds import seeded
from fedgen.data.tokens import FactoredTokens, TokenSource, batches, summarise
from fedgen.errors import DataError
from fedgen.models.bases import Bases
from fedgen.models.codec import Codec
from fedgen.models.moments import Moments
from fedgen.models.settings import CodecSettings, Lengths, ProjectionSettings
from fedgen.models.states import check_tensors, exact_digest, length_of

DECODED = 64  # samples that are decoded at a time for statistics


@dataclass(eq=False)
class SyntheticTokens:
    """A `TokenSource` of generated samples, decoded on ``device``."""

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

    @property
    def positions(self) -> Tensor:
        """``(S, A)``, of the codec."""
        return self.codec.positions

    @property
    def channels(self) -> Tensor:
        """``(D, C)``, of the codec."""
        return self.codec.channels

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        """Decode the samples at ``indices`` ``(B,)`` to ``(B, S, D)``, float32."""
        return self.codec.decode(self.latents_at(indices), self._noise)

    def factors(self, indices: Tensor) -> FactoredTokens:
        """Return the samples at ``indices`` ``(B,)`` as factors, which training multiplies by its weights first."""
        return self.codec.factors(self.latents_at(indices), self._noise)

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

    def statistics(self, per_class: int = 4) -> dict[str, float | dict[int, int]]:
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


class PooledTokens:
    """Several sources of factored tokens, such as the samples of several nodes, as one."""

    def __init__(self, parts: Sequence[SyntheticTokens | ProjectedTokens]) -> None:
        self.parts = [part for part in parts if len(part)]
        shapes = {part.shape for part in self.parts}
        if len(shapes) != 1:
            raise ValueError(f"pooled token sources need one shape (S, D), got {sorted(shapes) or 'no samples'}")
        self.shape = shapes.pop()
        self.labels = torch.cat([part.labels for part in self.parts])
        self._starts = torch.tensor([0, *(len(part) for part in self.parts)]).cumsum(0)  # (parts + 1,)
        digests = [exact_digest({"positions": p.positions, "channels": p.channels}) for p in self.parts]
        different = {digest: part for digest, part in zip(digests, self.parts, strict=True)}
        places = {digest: place for place, digest in enumerate(different)}  # nodes that share a codec share their bases
        self._basis_of = torch.tensor([places[digest] for digest in digests])
        self._positions = _stack([part.positions for part in different.values()])  # (P, S, A)
        self._channels = _stack([part.channels for part in different.values()])  # (P, D, C)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        """Return tokens ``(B, S, D)`` at ``indices`` ``(B,)``."""
        return self.factors(indices).dense()

    def factors(self, indices: Tensor) -> FactoredTokens:
        """Return the samples at ``indices`` ``(B,)`` as factors; each node's latents are decoded at once."""
        origins = torch.bucketize(indices, self._starts[1:], right=True)  # (B,)
        device = self._positions.device
        cores = torch.zeros(len(indices), self._positions.shape[2], self._channels.shape[2], device=device)  # (B, A, C)
        summary: Tensor | None = None
        for number, part in enumerate(self.parts):
            rows = (origins == number).nonzero().squeeze(1)
            if len(rows):
                found, rows = part.factors(indices[rows] - self._starts[number]), rows.to(device)
                cores[rows, : found.cores.shape[1], : found.cores.shape[2]] = found.cores
                if found.summary is not None:
                    summary = found.summary.new_zeros(len(indices), self.shape[1]) if summary is None else summary
                    summary[rows] = found.summary
        return FactoredTokens(self._positions, self._channels, cores, self._basis_of[origins].to(device), summary)

    def counts(self) -> dict[int, int]:
        """Return the number of samples of each class id."""
        return class_counts(self.labels)


def _summary(tokens: Tensor) -> Tensor:
    """Return mean, mean square, least and largest of the values of ``tokens`` ``(4,)``, float64."""
    values = tokens.double()
    return torch.stack([values.mean(), values.square().mean(), values.min(), values.max()])


def _stack(bases: list[Tensor]) -> Tensor:
    """Stack bases ``(rows, rank)``; where ranks differ, zeros fill up."""
    widest = max(basis.shape[1] for basis in bases)
    return torch.stack([functional.pad(basis, (0, widest - basis.shape[1])) for basis in bases])


def class_counts(labels: Tensor) -> dict[int, int]:
    """Return how often each class id occurs in ``labels``."""
    classes, counts = labels.unique(return_counts=True)
    return dict(zip(classes.tolist(), counts.tolist(), strict=True))


@dataclass(eq=False)
class ProjectedTokens:
    """A `TokenSource` of real clips, projected on bases of their own.

    A linear layer on such tokens costs a small share of its cost on the tokens themselves (see `FactoredTokens`), and
    all clips of a node fit into memory.
    """

    bases: Bases  # as long as the clips
    cores: Tensor  # (N, A, C), on the bases' device
    labels: Tensor  # global class ids (N,), int64, on the CPU
    summary: Tensor | None = None  # (N, D), where clips have one

    def __post_init__(self) -> None:
        self.positions, self.channels = self.bases.positions, self.bases.channels
        self.shape = (len(self.positions), len(self.channels))

    @classmethod
    def of(
        cls, source: TokenSource, settings: ProjectionSettings, bands: int = 0, batch_size: int = 64
    ) -> ProjectedTokens:
        """Project every clip of ``source`` on the leading eigenvectors of their second moments, in two passes."""
        sizes = CodecSettings(positions=settings.positions, channels=settings.channels)
        bases = Bases.from_moments(Moments.measure(source, batch_size), sizes, Lengths())
        parts = [(bases.project(tokens), summarise(tokens, bands)) for tokens in batches(source, batch_size)]
        cores, summaries = (torch.cat(part) for part in zip(*parts, strict=True))
        return cls(bases, cores.unflatten(1, bases.core), source.labels, summaries if bands else None)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Bytes of the cores."""
        return self.cores.nbytes

    def batch(self, indices: Tensor) -> Tensor:
        """Return tokens ``(B, S, D)`` at ``indices`` ``(B,)``."""
        return self.factors(indices).dense()

    def factors(self, indices: Tensor) -> FactoredTokens:
        """Return the clips at ``indices`` ``(B,)`` as factors."""
        rows = indices.to(self.cores.device)
        summary = None if self.summary is None else self.summary[rows]
        return FactoredTokens.alike(self.positions, self.channels, self.cores[rows], summary)
