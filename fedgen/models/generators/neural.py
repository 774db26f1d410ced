"""The common part of all generators that are trained by gradient descent."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedgen.data.seeds import seeded
from fedgen.data.targets import Conditions
from fedgen.errors import DataError
from fedgen.models.generators.base import Generator, Part
from fedgen.models.generators.density import ClassGaussians
from fedgen.models.generators.loop import TrainingSpec, TrainState, train
from fedgen.models.memory import BatchLimit
from fedgen.models.settings import Schedule
from fedgen.models.states import MOMENTS, average, check_optimizer_tensors, check_tensors, join, part_of


class NeuralGenerator(Generator):
    """A network that is trained on centred latents of unit mean variance, and a density that its samples start from.

    A kind defines the network (`build`), its training (`spec`), the parts fitted to the trained network (`finalize`)
    and sampling (`sample`). Fitting and sampling both read the ``embeddings`` of classes through `classes_of`.
    """

    def forget(self) -> None:
        """Drop weights, standardisation, density and the optimiser's state."""
        self.embeddings = self.see(self.conditions)  # of each global class id (C, ...) by name; empty if unconditioned
        self.model = self.build()  # on the CPU, except while it is trained
        # of the latents of the first fit; 0 and 1 for a shared generator
        self.mean, self.deviation = torch.zeros(self.size), torch.ones(())
        self.residual = torch.zeros(self.size)  # deviation of the noise that samples get (k,)
        self.density: ClassGaussians | None = None  # until `finalize`
        self.moments: dict[str, Tensor] = {}  # AdamW's, between fits
        self.initialised = False

    @classmethod
    def see(cls, conditions: Conditions | None) -> dict[str, Tensor]:
        """Return the network's input of ``conditions``: by default one vector a class, or nothing."""
        return {} if conditions is None else {"pooled": conditions.pooled()}

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the network, its weights not yet drawn."""

    @property
    @abstractmethod
    def spec(self) -> TrainingSpec:
        """How the network learns from rows ``values`` ``(b, k)`` and ``classes`` ``(b, C)``: see `classes_of`."""

    @property
    def code_size(self) -> int:
        """Coefficients of the vectors that the density describes."""
        return self.settings.latents

    def initialise(self, seed: int) -> None:
        """Draw every weight anew: matrices uniform within 1/sqrt(inputs), vectors 0."""
        self.forget()
        generator = seeded(seed, "weights")
        for parameter in self.model.parameters():
            if parameter.dim() > 1:
                nn.init.kaiming_uniform_(parameter, a=5**0.5, generator=generator)
            else:
                nn.init.zeros_(parameter)
        self.initialised = True

    def fit(
        self, part: Part, schedule: Schedule | None = None, limit: BatchLimit | None = None
    ) -> list[dict[str, float]]:
        """Train and finalize; a trained generator goes on, its ramps being over.

        One that nodes share is trained on all of them without early stopping, so that each node's steps count.
        """
        state = self._train_state(part, shared=schedule is not None)
        losses = train(state, self.spec, self.settings.training, schedule, limit)
        self.moments = state.moments
        self.model.cpu()
        if schedule is None:
            self.finalize(part.latents, part.labels)
        return losses

    def _train_state(self, part: Part, shared: bool) -> TrainState:
        """Return the training data and state; an untrained generator is initialised unless nodes share it."""
        if not self.initialised:
            self.initialise(part.seed)
            if not shared:
                self.mean = part.latents.mean(dim=0).cpu()
                self.deviation = part.latents.var(dim=0, correction=0).mean().sqrt().clamp(min=1e-3).cpu()
        classes, tables = self.classes_of(part.labels, part.latents.device)
        rows = {"values": self.standardised(part.latents), "classes": classes}
        resumed = bool(self.moments) and not shared
        split_seed = None if shared else part.split_seed
        return TrainState(self.model, rows, part.seed, split_seed, tables, self.moments, resumed)

    def standardised(self, latents: Tensor) -> Tensor:
        """Return ``latents`` ``(N, k)`` as the network sees them."""
        return (latents - self.mean.to(latents.device)) / self.deviation.to(latents.device)

    def classes_of(self, labels: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, dict[str, Tensor]]:
        """Return the class of each of ``labels`` ``(N,)``, one-hot ``(N, C)``, and the embeddings of these ``C``.

        A network embeds each class once and spreads the result over the rows with a product.
        """
        present, rows = labels.cpu().unique(return_inverse=True)
        classes = nn.functional.one_hot(rows, len(present)).float()
        tables = {name: value[present].float().to(device) for name, value in self.embeddings.items()}
        return classes.to(device), tables

    def require_density(self) -> ClassGaussians:
        """Return the density; `DataError` if there is none yet."""
        if self.density is None:
            raise DataError("the generator is not fitted")
        return self.density

    def shared_state(self) -> dict[str, Tensor]:
        """Return the weights and AdamW's state, copied."""
        parts = {"model": self.model.state_dict(), "optimizer": self.moments}
        return {name: value.detach().clone() for name, value in join(parts).items()}

    def load_shared_state(self, state: dict[str, Tensor]) -> None:
        """Load weights and AdamW's state; latents count as standardised."""
        moments = part_of(state, "optimizer")
        shapes = {f"optimizer.{name}": value.shape for name, value in moments.items()}
        check_tensors(state, self._model_shapes() | shapes)
        check_optimizer_tensors(self.model, moments)
        self.forget()
        self.model.load_state_dict(part_of(state, "model"))
        self.moments, self.initialised = {name: value.clone() for name, value in moments.items()}, True

    @classmethod
    def merge(cls, states: Sequence[dict[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
        """Return the weighted mean of weights and moments; step counts are rounded."""
        merged = average(states, weights)
        step = f"optimizer.{MOMENTS[0]}."
        return {name: value.round() if name.startswith(step) else value for name, value in merged.items()}

    def state(self) -> dict[str, Tensor]:
        """Return weights, standardisation, density and the optimiser's moments; empty before the first fit."""
        if self.density is None:
            return {}
        parts = {"model": self.model.state_dict(), "density": self.density.state(), "optimizer": self.moments}
        return join(parts) | {"mean": self.mean, "deviation": self.deviation, "residual": self.residual}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Load ``state``; `DataError` names a tensor that is missing, unknown, not finite or misshapen."""
        expected = self._model_shapes()
        expected |= {"mean": self.mean.shape, "deviation": self.deviation.shape, "residual": self.residual.shape}
        moments, density = part_of(state, "optimizer"), part_of(state, "density")
        parts = {name: value.shape for name, value in join({"optimizer": moments, "density": density}).items()}
        check_tensors(state, expected | parts)
        check_optimizer_tensors(self.model, moments)
        self.density = ClassGaussians.from_state(density, self.code_size)
        self.model.load_state_dict(part_of(state, "model"))
        self.moments, self.initialised = moments, True
        self.mean, self.deviation, self.residual = state["mean"], state["deviation"], state["residual"]

    def _model_shapes(self) -> dict[str, torch.Size]:
        return {f"model.{name}": value.shape for name, value in self.model.state_dict().items()}


class LinearCondition(nn.Module):
    """One linear layer over one vector a class."""

    names: tuple[str, ...] = ()  # of the conditions that a row can do without

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.layer = linear(inputs, width)

    def forward(self, classes: Tensor, tables: dict[str, Tensor], absent: Tensor | None) -> Tensor:
        """Return a vector for each row ``(B, width)``: each class is embedded once, then spread over the rows.

        Parameters
        ----------
        classes : Tensor
            One-hot class of each row ``(B, C)``.
        tables : dict[str, Tensor]
            Conditions of the ``C`` classes by name.
        absent : Tensor, optional
            Conditions of ``names`` that each row does without ``(B, len(names))``, boolean.
        """
        return classes @ self.layer(tables["pooled"])


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a layer without drawing from the global random state; `NeuralGenerator.initialise` fills it."""
    return nn.utils.skip_init(nn.Linear, inputs, outputs)


def mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Return two hidden layers of ``width`` and a linear output."""
    return nn.Sequential(linear(inputs, width), nn.SiLU(), linear(width, width), nn.SiLU(), linear(width, outputs))
