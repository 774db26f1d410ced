"""The two networks of a GAN of codec latents."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedgen.models.generators.conditioning import LinearCondition, linear, mlp


class Map(nn.Module):
    """From codes to samples: the map of the class's Gaussian, which a network scales and shifts in every coefficient.

    Parameters
    ----------
    size : int
        Coefficients ``k`` of a latent vector, and of a code.
    width : int
        Hidden width.
    condition : LinearCondition
        Embeds the classes.
    """

    def __init__(self, size: int, width: int, condition: LinearCondition) -> None:
        super().__init__()
        self.condition = condition
        self.residual = mlp(size + condition.width, width, 2 * size)

    @property
    def last(self) -> nn.Linear:
        """The layer that gives scale and shift."""
        layer = self.residual[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, codes: Tensor, classes: Tensor, tables: dict[str, Tensor]) -> Tensor:
        """Return ``m`` samples for each row ``(b, m, k)``.

        Parameters
        ----------
        codes : Tensor
            Standard normal ``(b, m, k)``.
        classes : Tensor
            One-hot class of each row ``(b, C)``.
        tables : dict[str, Tensor]
            Of the ``C`` classes: ``pooled`` ``(C, c)``, ``means`` ``(C, k)`` and ``factors`` ``(C, k, k)``.
        """
        embedded = self.condition(classes, tables, None)[:, None].expand(-1, codes.shape[1], -1)  # (b, m, e)
        scale, shift = self.residual(torch.cat([codes, embedded], dim=2)).chunk(2, dim=2)
        factors = (classes @ tables["factors"].flatten(1)).unflatten(1, (codes.shape[2], -1))  # (b, k, k)
        return (classes @ tables["means"])[:, None] + (1 + scale) * (codes @ factors.mT) + shift


class Discriminator(nn.Module):
    """Tells real latents from made ones by their distance to the class mean and by the class."""

    def __init__(self, size: int, width: int, condition: LinearCondition) -> None:
        super().__init__()
        self.condition = condition
        self.first, self.second = linear(size + condition.width, width), linear(width, width)
        # No bias: as long as all scores are between -1 and 1, the hinge loss gives it no gradient but rounding errors.
        self.last = nn.utils.skip_init(nn.Linear, width, 1, bias=False)

    def forward(self, values: Tensor, classes: Tensor, tables: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the score of ``values`` ``(b, m, k)``, ``(b, m)``, and both hidden layers ``(b, m, w)``."""
        embedded = self.condition(classes, tables, None)[:, None].expand(-1, values.shape[1], -1)
        centred = values - (classes @ tables["means"])[:, None]
        first = functional.silu(self.first(torch.cat([centred, embedded], dim=2)))
        second = functional.silu(self.second(first))
        return self.last(second).squeeze(2), [first, second]


class GANNetwork(nn.Module):
    """Both networks, each with an embedding of the conditions of its own."""

    def __init__(self, size: int, width: int, conditions: int, embedding: int) -> None:
        super().__init__()
        self.generator = Map(size, width, LinearCondition(conditions, embedding))
        self.discriminator = Discriminator(size, width, LinearCondition(conditions, embedding))
