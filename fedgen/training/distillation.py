"""Distillation: learn from what the nodes' adapters make of samples, each of them asked about its own classes."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor
from torch.func import functional_call

from fedgen.data.tokens import FactoredTokens
from fedgen.models.adapters import Adapters


class Teachers:
    """The nodes' adapters as teachers; of a sample, those count that have clips of its class, weighted by their clips.

    Parameters
    ----------
    adapters : Adapters
        Any of the teachers' shape, on the device to work on.
    states : Mapping[int, dict[str, Tensor]]
        Adapter weights by the node's number.
    counts : Mapping[int, Mapping[int, int]]
        Clips of each class id, by the node's number.
    classes : int
        Number of classes ``C``.

    References
    ----------
    Lin et al., "Ensemble Distillation for Robust Model Fusion in Federated Learning", NeurIPS 2020; there all teachers
    count alike, here none is asked about a class that it has never seen.
    """

    def __init__(
        self,
        adapters: Adapters,
        states: Mapping[int, Mapping[str, Tensor]],
        counts: Mapping[int, Mapping[int, int]],
        classes: int,
    ) -> None:
        self.adapters = deepcopy(adapters).eval()
        device = next(adapters.parameters()).device
        self.states = [{name: value.to(device) for name, value in state.items()} for state in states.values()]
        shares = torch.zeros(len(self.states), classes)  # (T, C)
        for row, number in enumerate(states):
            for label, count in counts[number].items():
                shares[row, label] = count
        self.shares = shares / shares.sum(dim=0).clamp(min=1)

    @torch.no_grad()
    def outputs(self, tokens: Tensor | FactoredTokens, labels: Tensor) -> dict[str, Tensor]:
        """Return the teachers' mean output for each sample.

        Parameters
        ----------
        tokens : Tensor or FactoredTokens
            ``(B, S, D)`` on the adapters' device.
        labels : Tensor
            Class ids ``(B,)``, on the CPU.

        Returns
        -------
        dict[str, Tensor]
            ``{head: (B, *shape)}``, float32; NaN where no teacher has clips of the class.
        """
        means: dict[str, Tensor] = {}
        weights = self.shares[:, labels]  # (T, B)
        for state, own in zip(self.states, weights, strict=True):
            rows = own.nonzero().squeeze(1)
            if not len(rows):
                continue
            found: dict[str, Tensor] = functional_call(self.adapters, state, (_rows(tokens, rows),))
            for name, output in found.items():
                if name not in means:
                    means[name] = output.new_zeros((len(labels), *output.shape[1:]), dtype=torch.float32)
                weighted = output.float() * own[rows].to(output.device).view(-1, *[1] * (output.dim() - 1))
                means[name].index_add_(0, rows.to(output.device), weighted)
        for mean in means.values():
            mean[(weights.sum(dim=0) == 0).to(mean.device)] = torch.nan
        return means

    def losses(
        self, outputs: dict[str, Tensor], tokens: Tensor | FactoredTokens, labels: Tensor, targets: dict[str, Tensor]
    ) -> Tensor:
        """Return each head's mean squared distance to its teachers, relative to the targets' mean square, ``(H,)``.

        Samples without a teacher count as 0.
        """
        taught = self.outputs(tokens, labels)
        errors = []
        for name, output in outputs.items():
            wanted = taught[name] if name in taught else torch.full_like(output, torch.nan)
            error = (output - torch.where(wanted.isnan(), output.detach(), wanted)).square().mean()
            errors.append(error / targets[name].square().mean())
        return torch.stack(errors)


def _rows(tokens: Tensor | FactoredTokens, rows: Tensor) -> Tensor | FactoredTokens:
    if isinstance(tokens, FactoredTokens):
        rows = rows.to(tokens.cores.device)
        return FactoredTokens(tokens.positions, tokens.channels, tokens.cores[rows], tokens.origins[rows])
    return tokens[rows.to(tokens.device)]
