"""What generators may be conditioned on: the text embeddings of every class, by text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedgen.errors import ConfigError, suggestion


@dataclass(frozen=True)
class Conditions:
    """The text embeddings of every class.

    Attributes
    ----------
    values : Mapping[str, Tensor]
        By name (``clip``, ``t5``, ``text``): for each global class id a vector ``(C, width)`` or a token sequence
        ``(C, tokens, width)``.
    """

    values: Mapping[str, Tensor]

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Shape of a class's embedding by name: ``(width,)`` or ``(tokens, width)``."""
        return {name: tuple(value.shape[1:]) for name, value in self.values.items()}

    def __len__(self) -> int:
        return min((len(value) for value in self.values.values()), default=0)

    def select(self, names: Sequence[str]) -> Conditions:
        """Return only the embeddings that ``names`` lists, in that order; all of them if it is empty.

        Raises
        ------
        ConfigError
            The target has no embedding of a name.
        """
        for name in names:
            if name not in self.values:
                known = ", ".join(self.values) or "none"
                raise ConfigError(
                    f"generator.conditions names {name!r}, the target has {known}.{suggestion(name, self.values)}"
                )
        return Conditions({name: self.values[name] for name in names or self.values})

    def pooled(self) -> Tensor:
        """Return one vector per class ``(C, c)``: each embedding's mean over tokens, of unit norm, side by side."""
        means = [value if value.dim() == 2 else value.mean(1) for value in self.values.values()]  # (C, width) each
        return torch.cat([functional.normalize(mean, dim=1) for mean in means], dim=1)
