"""Synthetic token sequences: latents and class ids, decoded batch by batch when training asks for them."""

from __future__ import annotations

import torch
from torch import Tensor

from fedgen.data.tokens import TokenSource
from fedgen.models.codec import Codec
from fedgen.models.seeds import seeded


class SyntheticTokens:
    """A `TokenSource` of generated samples.

    Parameters
    ----------
    codec : Codec
        Decoder of the latents.
    latents : Tensor
        ``(N, k)``.
    labels : Tensor
        Global class ids ``(N,)``.
    seed : int
        Seed of the residual noise, which is drawn anew each time a sample is decoded.
    device : torch.device or str
        Where samples are decoded.
    """

    def __init__(
        self, codec: Codec, latents: Tensor, labels: Tensor, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        self.codec = codec.to(device)
        self.latents = latents.float().to(device)
        self.labels = labels.long().cpu()
        self.shape = codec.shape
        self.seed = seed
        self._noise = seeded(seed, "residual", device=device)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        """Decode the samples at ``indices`` ``(B,)`` to ``(B, S, D)``, float32."""
        return self.codec.decode(self.latents[indices.to(self.latents.device)], self._noise)

    def to(self, device: torch.device | str) -> SyntheticTokens:
        """Return the samples on ``device``, with their noise from its start."""
        return SyntheticTokens(self.codec, self.latents, self.labels, self.seed, device)

    def counts(self) -> dict[int, int]:
        """Return the number of samples of each class id."""
        return class_counts(self.labels)


class PooledTokens:
    """Several token sources, such as the samples of all nodes, as one."""

    def __init__(self, parts: list[TokenSource]) -> None:
        self.parts = [part for part in parts if len(part)]
        shapes = {part.shape for part in self.parts}
        if len(shapes) != 1:
            raise ValueError(f"pooled token sources need one shape (S, D), got {sorted(shapes) or 'no samples'}")
        self.shape = shapes.pop()
        self.labels = torch.cat([part.labels for part in self.parts])
        self._starts = torch.tensor([0, *(len(part) for part in self.parts)]).cumsum(0)  # (parts + 1,)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        """Return tokens ``(B, S, D)`` at ``indices`` ``(B,)``; each source reads its own at once."""
        owner = torch.bucketize(indices, self._starts[1:], right=True)
        order = owner.argsort(stable=True)
        tokens = [
            part.batch(indices[owner == number] - self._starts[number])
            for number, part in enumerate(self.parts)
            if bool((owner == number).any())
        ]
        if len(tokens) == 1:
            return tokens[0]
        return torch.cat(tokens)[order.argsort().to(tokens[0].device)]

    def counts(self) -> dict[int, int]:
        """Return the number of samples of each class id."""
        return class_counts(self.labels)


def class_counts(labels: Tensor) -> dict[int, int]:
    """Return how often each class id occurs in ``labels``."""
    classes, counts = labels.unique(return_counts=True)
    return dict(zip(classes.tolist(), counts.tolist(), strict=True))
