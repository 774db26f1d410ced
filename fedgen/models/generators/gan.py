"""Generator and discriminator of codec latents that start at the class Gaussians."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedgen.data.seeds import seeded
from fedgen.models.generators.base import Part
from fedgen.models.generators.density import ClassGaussians, ClassStatistics, class_widths
from fedgen.models.generators.loop import Batch, OptimStep, TrainingSpec, TrainState, hold_out
from fedgen.models.generators.neural import LinearCondition, NeuralGenerator, linear, mlp
from fedgen.models.settings import GANTraining

DRAWS = 64  # codes that every validation maps anew to the classes


class GeneratorNetwork(nn.Module):
    """From codes to samples: the map of the class's Gaussian, which a network scales and shifts in every coefficient.

    ``size`` are the coefficients ``k`` of a latent vector and of a code.
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
        self.generator = GeneratorNetwork(size, width, LinearCondition(conditions, embedding))
        self.discriminator = Discriminator(size, width, LinearCondition(conditions, embedding))


class GANGenerator(NeuralGenerator):
    """Class Gaussians of standardised latents, bent by a network that learns against a discriminator.

    Untrained it is the `gaussian` kind. With few clips the adversarial loss alone finds little that is true of other
    clips, so the generator also matches the distribution of the discriminator's features and of the latents, and the
    energy score of held-out clips decides which epoch counts, the untrained one among them. In training the Gaussians
    are those of the other clips, afterwards those of all. They stay with the node.

    References
    ----------
    Lim and Ye, "Geometric GAN", 1705.02894 (hinge loss); Mescheder et al., "Which training methods for GANs do actually
    converge?", 1801.04406 (R1); Salimans et al., "Improved techniques for training GANs", 1606.03498 (feature
    matching); Bellemare et al., "The Cramer distance", 1705.10743 (energy distance of features); Gneiting and Raftery,
    "Strictly proper scoring rules", JASA 2007 (energy score).
    """

    kind = "gan"
    conditioned = True
    model: GANNetwork

    def build(self) -> GANNetwork:
        """Return both networks."""
        pooled = self.embeddings["pooled"].shape[1]
        return GANNetwork(self.size, self.settings.width, pooled, self.settings.embedding)

    @property
    def code_size(self) -> int:
        """Codes are as long as latents."""
        return self.size

    def initialise(self, seed: int) -> None:
        """Draw every weight anew; the last layer of the generator is 0: it is the map of the class Gaussians."""
        super().initialise(seed)
        nn.init.zeros_(self.model.generator.last.weight)

    @property
    def spec(self) -> TrainingSpec:
        """The discriminator's step, then the generator's, on the same codes."""
        training, size = self.settings.training, self.size

        def noise(rows: int, generator: torch.Generator) -> dict[str, Tensor]:
            device = generator.device
            drawn = {"codes": torch.randn(rows, training.fakes, size, generator=generator, device=device)}
            if training.noise:
                drawn["input"] = torch.randn(rows, 1 + training.fakes, size, generator=generator, device=device)
            return drawn

        judge, make = (partial(losses, training=training) for losses in (discriminator_losses, generator_losses))
        steps = (
            OptimStep(judge, ("score_gap", "gradient_penalty", "discriminator_loss"), part="discriminator"),
            OptimStep(make, ("adversarial", "feature_matching", "energy", "loss"), part="generator"),
        )
        return TrainingSpec(steps, noise, validation=held_out_energy)

    def _train_state(self, part: Part, shared: bool) -> TrainState:
        """Add the class Gaussians and the codes of validation; the untrained model is the first candidate."""
        state, labels = super()._train_state(part, shared), part.labels.cpu()
        held, rows = hold_out(state.count, 0.0 if shared else self.settings.training.validation, part.split_seed)
        alone = held[~torch.isin(labels[held], labels[rows])]  # their classes have no other clips
        rows = torch.cat([rows, alone])
        values = state.rows["values"]
        density = self._density(values[rows.to(state.device)], labels[rows])
        draws = torch.randn(DRAWS, self.size, generator=seeded(part.split_seed, "validation codes"))
        tables = {"means": density.means, "factors": density.factors[density.factor_of], "draws": draws}
        state.tables |= {name: value.to(state.device) for name, value in tables.items()}
        return replace(state, resumed=not shared)

    def finalize(self, latents: Tensor, labels: Tensor) -> None:
        """Fit the class Gaussians that samples start from."""
        self.density = self._density(self.standardised(latents), labels)

    def _density(self, values: Tensor, labels: Tensor) -> ClassGaussians:
        """Return class Gaussians of standardised ``values`` ``(N, k)``."""
        if self.within is None:
            return ClassGaussians.fit(values, labels, self.settings.shrinkage)
        within = self.within / self.deviation.square()
        statistics = ClassStatistics.measure(values, labels, scattered=False)
        return ClassGaussians.around(statistics, within, class_widths(values, labels, within))

    @torch.no_grad()
    def sample(self, label: int, count: int, generator: torch.Generator, absent: Sequence[str] = ()) -> Tensor:
        """Draw ``count`` latents ``(count, k)`` of class ``label``."""
        self.refuse_absent(absent)
        mean, factor = self.require_density().of(label)
        classes, tables = self.classes_of(torch.tensor([label]))
        tables |= {"means": mean[None], "factors": factor[None]}
        codes = torch.randn(1, count, self.size, generator=generator)
        return self.model.generator(codes, classes, tables)[0] * self.deviation + self.mean


def discriminator_losses(model: GANNetwork, batch: Batch, training: GANTraining) -> Tensor:
    """Return mean score of real minus made, gradient penalty on real, and the minimised loss ``(3,)``."""
    seen = _seen(model.generator(batch.noise["codes"], batch.rows["classes"], batch.tables), batch, training)

    def score(values: Tensor) -> Tensor:
        return model.discriminator(values, batch.rows["classes"], batch.tables)[0]

    scores = score(seen)  # (b, 1 + fakes)
    real, made = scores[:, 0], scores[:, 1:]
    hinge = functional.relu(1 - real) + functional.relu(1 + made).mean(dim=1)
    slope = torch.func.grad(lambda values: score(values).sum())(seen[:, :1])  # (b, 1, k)
    penalty = 0.5 * slope.square().sum(dim=(1, 2))
    loss = hinge + training.gradient_penalty * penalty
    return torch.stack([real - made.mean(dim=1), penalty, loss]) @ batch.share


def generator_losses(model: GANNetwork, batch: Batch, training: GANTraining) -> Tensor:
    """Return adversarial loss, energy scores of features and of latents, and the minimised loss ``(4,)``."""
    made = model.generator(batch.noise["codes"], batch.rows["classes"], batch.tables)
    scores, layers = model.discriminator(_seen(made, batch, training), batch.rows["classes"], batch.tables)
    adversarial = -scores[:, 1:].mean(dim=1)
    matching = sum((energy_score(layer[:, 1:], layer[:, 0]) for layer in layers), torch.zeros_like(adversarial))
    energy = energy_score(made, batch.rows["values"])
    loss = training.adversarial * adversarial + training.feature_matching * (matching + energy)
    return torch.stack([adversarial, matching, energy, loss]) @ batch.share


def held_out_energy(model: GANNetwork, batch: Batch) -> Tensor:
    """Return the energy score ``(1,)`` of the batch under samples from the codes ``draws``, the same for each class."""
    count = batch.tables["means"].shape[0]
    classes = torch.eye(count, device=batch.share.device)
    codes = batch.tables["draws"].expand(count, -1, -1)
    made = model.generator(codes, classes, batch.tables)  # (C, DRAWS, k)
    within = torch.cdist(made, made).sum(dim=(1, 2)) / (DRAWS * (DRAWS - 1))  # (C,)
    across = torch.cdist(batch.rows["values"].expand(count, -1, -1), made).mean(dim=2)  # (C, b)
    return ((batch.rows["classes"] * (across.T - 0.5 * within)).sum(dim=1) @ batch.share)[None]


def energy_score(made: Tensor, real: Tensor) -> Tensor:
    """Return the energy score ``(b,)`` of ``real`` ``(b, k)``, each under its own ``m`` samples ``made`` ``(b, m, k)``.

    Its mean over rows is, up to a constant, half the energy distance between both distributions, without bias.
    """
    count = made.shape[1]
    within = _distance(made[:, :, None], made[:, None]).sum(dim=(1, 2)) / (count * (count - 1))
    return _distance(made, real[:, None]).mean(dim=1) - 0.5 * within


def _distance(one: Tensor, other: Tensor) -> Tensor:
    """Return Euclidean distances over the last dimension; that of equal vectors is almost 0 and has a gradient."""
    return ((one - other).square().sum(dim=-1) + 1e-8).sqrt()


def _seen(made: Tensor, batch: Batch, training: GANTraining) -> Tensor:
    """Return what the discriminator sees of each row ``(b, 1 + fakes, k)``: the real one, then ``made``, with noise."""
    values = torch.cat([batch.rows["values"][:, None], made], dim=1)
    return values + training.noise * batch.noise["input"] if "input" in batch.noise else values
