"""Variational autoencoders of codec latents, sampled from a density fitted to their codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedgen.errors import DataError
from fedgen.models.density import ClassGaussians, variance_within
from fedgen.models.generators.base import Generator, GeneratorSettings
from fedgen.models.generators.loop import train
from fedgen.models.optimizer import check_optimizer_tensors
from fedgen.models.seeds import seeded

EMBEDDING = 64  # width of the embedded condition
FILL = 256  # samples of a class that tell how much variance decoding loses


class VAENetwork(nn.Module):
    """Encoder and decoder of two hidden layers each; the condition enters both through one linear layer."""

    def __init__(self, size: int, width: int, latents: int, condition: int = 0) -> None:
        super().__init__()
        extra = EMBEDDING if condition else 0
        self.embed = _linear(condition, EMBEDDING) if condition else None
        self.encoder = _mlp(size + extra, width, 2 * latents)
        self.decoder = _mlp(latents + extra, width, size)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw every weight anew, uniform within 1/sqrt(inputs); biases become 0."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)
                nn.init.zeros_(layer.bias)

    def encode(self, values: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return mean and log variance ``(B, latents)`` of the posterior of ``values`` ``(B, k)``."""
        mean, log_variance = self.encoder(self._join(values, condition)).chunk(2, dim=1)
        return mean, log_variance.clamp(-12, 8)

    def decode(self, codes: Tensor, condition: Tensor | None) -> Tensor:
        """Return values ``(B, k)`` of ``codes`` ``(B, latents)``; the output is linear."""
        return self.decoder(self._join(codes, condition))

    def _join(self, values: Tensor, condition: Tensor | None) -> Tensor:
        return values if self.embed is None else torch.cat([values, self.embed(condition)], dim=1)


class VAEGenerator(Generator):
    """MLP VAE on centred latents of unit mean variance, with ex-post density.

    The loss is the mean squared error over elements plus beta times the divergence summed over codes. After training,
    class Gaussians are fitted to the posterior means; samples are decoded from them, and each coefficient gets, as
    noise, what its variance within classes then lacks of the data's. Codes from the prior would cover a third of it.

    References
    ----------
    Kingma and Welling, "Auto-encoding variational Bayes", 1312.6114; Ghosh et al., "From variational to deterministic
    autoencoders", ICLR 2020 (ex-post density).
    """

    kind = "vae"

    def __init__(self, settings: GeneratorSettings, size: int, conditions: Tensor | None = None) -> None:
        super().__init__(settings, size, conditions)
        width = 0 if self.conditions is None else self.conditions.shape[1]
        self.model = VAENetwork(size, settings.width, settings.latents, width)
        self.mean, self.deviation = torch.zeros(size), torch.ones(())  # of the latents of the first fit
        self.residual = torch.zeros(size)  # deviation of the noise that samples get
        self.density: ClassGaussians | None = None
        self.moments: dict[str, Tensor] = {}  # the optimiser's, between fits

    def fit(self, latents: Tensor, labels: Tensor, seed: int) -> list[dict[str, float]]:
        """Train on ``latents`` ``(N, k)`` of classes ``labels`` ``(N,)``; a later call goes on at full beta."""
        first = self.density is None
        if first:
            self.model.initialise(seeded(seed, "weights"))
            self.mean = latents.mean(dim=0).cpu()
            self.deviation = latents.var(dim=0, correction=0).mean().sqrt().clamp(min=1e-3).cpu()
        device = latents.device
        values = (latents - self.mean.to(device)) / self.deviation.to(device)  # (N, k)
        condition = self._condition(labels, device)
        training = self.settings.training
        warmup = training.beta_warmup if first else 0.0

        def objective(rows: Tensor, progress: float, noise: torch.Generator | None) -> Tensor:
            beta = training.beta * (min(1.0, progress / warmup) if warmup else 1.0)
            return _losses(self.model, values[rows], _rows(condition, rows), beta, training.noise, noise)

        self.model.to(device)
        losses, self.moments = train(
            self.model, objective, ("reconstruction", "kl", "loss"), len(values), training, seed, self.moments
        )
        self._fit_density(values, labels, condition)
        return losses

    @torch.no_grad()
    def sample(self, label: int, count: int, generator: torch.Generator) -> Tensor:
        """Draw ``count`` latents ``(count, k)`` of class ``label``."""
        if self.density is None:
            raise DataError("the generator is not fitted")
        values = self._decode(self.density, label, count, generator)
        values = values + self.residual * torch.randn(values.shape, generator=generator)
        return values * self.deviation + self.mean

    def state(self) -> dict[str, Tensor]:
        """Return weights, standardisation, density and the optimiser's moments; empty before the first fit."""
        if self.density is None:
            return {}
        parts = {"model": self.model.state_dict(), "density": self.density.state(), "optimizer": self.moments}
        state = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
        return state | {"mean": self.mean, "deviation": self.deviation, "residual": self.residual}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over ``state``.

        Raises
        ------
        DataError
            Names a tensor that is missing or of another shape than these settings give it.
        """
        expected = {f"model.{name}": value.shape for name, value in self.model.state_dict().items()}
        expected |= {"mean": self.mean.shape, "deviation": self.deviation.shape, "residual": self.residual.shape}
        for name, shape in expected.items():
            if name not in state or state[name].shape != shape:
                found = tuple(state[name].shape) if name in state else "missing"
                raise DataError(f"{name} is {found}, expected shape {tuple(shape)}")
        moments = _part(state, "optimizer")
        check_optimizer_tensors(self.model, moments)
        self.density = ClassGaussians.from_state(_part(state, "density"), self.settings.latents)
        self.model.load_state_dict(_part(state, "model"))
        self.moments = moments
        self.mean, self.deviation, self.residual = state["mean"], state["deviation"], state["residual"]

    @torch.no_grad()
    def _fit_density(self, values: Tensor, labels: Tensor, condition: Tensor | None) -> None:
        """Fit the density of the codes and the noise that samples lack; the model moves to the CPU to sample there."""
        codes, _ = self.model.encode(values, condition)
        self.model.cpu()
        density = ClassGaussians.fit(codes, labels, self.settings.shrinkage)
        chosen, stream = density.classes, seeded(0, "fill")
        made = torch.cat([self._decode(density, label, FILL, stream) for label in chosen.tolist()])
        lacking = variance_within(values.cpu(), labels.cpu()) - variance_within(made, chosen.repeat_interleave(FILL))
        self.density, self.residual = density, lacking.clamp(min=0).sqrt()

    def _decode(self, density: ClassGaussians, label: int, count: int, generator: torch.Generator) -> Tensor:
        """Return standardised samples ``(count, k)`` of class ``label``, without noise."""
        codes = density.sample(label, count, generator)  # (count, latents)
        return self.model.decode(codes, self._condition(torch.full((count,), label), codes.device))

    def _condition(self, labels: Tensor, device: torch.device) -> Tensor | None:
        """Return the condition vector of each label ``(N, c)``, or None for an unconditioned kind."""
        return None if self.conditions is None else self.conditions[labels.cpu()].float().to(device)


class ConditionedVAEGenerator(VAEGenerator):
    """The same with the class's condition vector, such as its text embedding, in encoder and decoder."""

    kind = "conditioned_vae"
    conditioned = True


def _losses(
    model: VAENetwork,
    values: Tensor,
    condition: Tensor | None,
    beta: float,
    deviation: float,
    noise: torch.Generator | None,
) -> Tensor:
    """Return reconstruction, divergence and their weighted sum ``(3,)``; noise goes on the input, not on the target."""
    inputs = values + deviation * _normal(values, noise) if noise is not None and deviation else values
    mean, log_variance = model.encode(inputs, condition)
    codes = mean if noise is None else mean + (0.5 * log_variance).exp() * _normal(mean, noise)
    reconstruction = (model.decode(codes, condition) - values).square().mean()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1).mean()
    return torch.stack([reconstruction, kl, reconstruction + beta * kl])


def _normal(like: Tensor, noise: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=noise, device=like.device)


def _rows(condition: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if condition is None else condition[rows]


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): value for name, value in state.items() if name.startswith(f"{prefix}.")}


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a layer without drawing from the global random state; `VAENetwork.initialise` fills it."""
    return nn.utils.skip_init(nn.Linear, inputs, outputs)


def _mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_linear(inputs, width), nn.SiLU(), _linear(width, width), nn.SiLU(), _linear(width, outputs))
