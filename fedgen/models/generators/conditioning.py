"""How networks see the text conditions of classes, and the layers that all networks are made of."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class ConditionEncoder(nn.Module):
    """From the conditions of classes to one vector for each row."""

    width: int  # of that vector
    names: tuple[str, ...] = ()  # of the conditions that a row can do without

    def forward(self, classes: Tensor, tables: dict[str, Tensor], absent: Tensor | None) -> Tensor:
        """Return a vector for each row ``(B, width)``.

        Parameters
        ----------
        classes : Tensor
            One-hot class of each row ``(B, C)``.
        tables : dict[str, Tensor]
            Conditions of the ``C`` classes by name.
        absent : Tensor, optional
            Which of ``names`` each row does without ``(B, len(names))``, boolean.
        """
        raise NotImplementedError


class LinearCondition(ConditionEncoder):
    """One linear layer over one vector a class."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.layer = linear(inputs, width)

    def forward(self, classes: Tensor, tables: dict[str, Tensor], absent: Tensor | None) -> Tensor:
        """Embed each class once, then spread over the rows."""
        return classes @ self.layer(tables["pooled"])


class FusedConditions(ConditionEncoder):
    """Each condition encoded apart, then summed; what is absent is replaced by a vector that is learned for it.

    A sum of linear layers is one linear layer over all inputs side by side: with nothing absent, fusing loses nothing
    against `LinearCondition`. The learned stand-ins keep its scale when something is absent, which a mean of what is
    present would not, and let the network know what it does without. Experts with a variance each (a product of
    experts) would model how sure each condition is of the codes; here every class has one known value of each.

    Parameters
    ----------
    shapes : Mapping[str, tuple[int, ...]]
        Of a class's condition by name: ``(w,)`` for a vector, ``(T, w)`` for a token sequence.
    width : int
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], width: int) -> None:
        super().__init__()
        self.width, self.names = width, tuple(shapes)
        self.encoders = nn.ModuleList(
            linear(shape[0], width) if len(shape) == 1 else AttentionPool(shape[0], shape[1], width)
            for shape in shapes.values()
        )
        self.absent = nn.Parameter(torch.empty(len(shapes), width))

    def forward(self, classes: Tensor, tables: dict[str, Tensor], absent: Tensor | None) -> Tensor:
        """Encode each class once, then spread over the rows and replace what they do without."""
        pairs = zip(self.encoders, self.names, strict=True)
        parts = torch.stack([classes @ encoder(tables[name]) for encoder, name in pairs], dim=1)  # (B, n, width)
        if absent is not None:
            parts = torch.where(absent[..., None], self.absent, parts)
        return parts.sum(dim=1)


class AttentionPool(nn.Module):
    """One vector from a token sequence: projected tokens, weighted by a learned query and by their position.

    Parameters
    ----------
    tokens, inputs : int
        Shape of a sequence ``(T, w)``.
    width : int
    """

    def __init__(self, tokens: int, inputs: int, width: int) -> None:
        super().__init__()
        self.project = linear(inputs, width)
        self.query = nn.Parameter(torch.empty(width, 1))
        self.position = nn.Parameter(torch.empty(tokens))

    def forward(self, sequences: Tensor) -> Tensor:
        """Return ``(C, width)`` for ``sequences`` ``(C, T, w)``."""
        values = self.project(sequences)  # (C, T, width)
        weights = ((values @ self.query).squeeze(-1) + self.position).softmax(dim=1)  # (C, T)
        return (weights[:, None] @ values).squeeze(1)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a layer without drawing from the global random state; `NeuralGenerator.initialise` fills it."""
    return nn.utils.skip_init(nn.Linear, inputs, outputs)


def mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Return two hidden layers of ``width`` and a linear output."""
    return nn.Sequential(linear(inputs, width), nn.SiLU(), linear(width, width), nn.SiLU(), linear(width, outputs))
