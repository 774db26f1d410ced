"""Variational autoencoders of codec latents, sampled from a density fitted to their codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedgen.data.seeds import seeded
from fedgen.data.targets import Conditions
from fedgen.models.generators.density import ClassGaussians, variance_within
from fedgen.models.generators.loop import Batch, OptimStep, TrainingSpec
from fedgen.models.generators.neural import LinearCondition, NeuralGenerator, linear, mlp
from fedgen.models.settings import VAETraining


class FusedConditions(nn.Module):
    """Each condition encoded apart, then summed; an absent one is replaced by a vector that is learned for it.

    A sum of linear layers is one linear layer over all inputs side by side: with nothing absent, fusing loses nothing
    against `LinearCondition`. The learned stand-ins keep the scale of the sum when something is absent. ``shapes`` of a
    class's conditions are ``(w,)`` for a vector, ``(T, w)`` for a token sequence.
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
    """One vector from a token sequence ``(T, w)``: projected tokens, weighted by a learned query and by position."""

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


Condition = LinearCondition | FusedConditions


FILL = 256  # samples of a class that tell how much variance decoding loses


class VAENetwork(nn.Module):
    """Encoder and decoder of two hidden layers each; the embedded condition, if any, enters both.

    ``size`` are the coefficients ``k`` of a latent vector, ``width`` and ``latents`` the hidden width and the length of
    the codes.
    """

    def __init__(self, size: int, width: int, latents: int, condition: Condition | None = None) -> None:
        super().__init__()
        extra = condition.width if condition else 0
        self.condition = condition
        self.encoder = mlp(size + extra, width, 2 * latents)
        self.decoder = mlp(latents + extra, width, size)

    def embed(self, classes: Tensor, tables: dict[str, Tensor], absent: Tensor | None = None) -> Tensor:
        """Return the condition of each row as `LinearCondition` does; of no width for unconditioned kinds."""
        return classes[:, :0] if self.condition is None else self.condition(classes, tables, absent)

    def encode(self, values: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance ``(B, latents)`` of the posterior of ``values`` ``(B, k)``."""
        mean, log_variance = self.encoder(torch.cat([values, condition], dim=1)).chunk(2, dim=1)
        return mean, log_variance.clamp(-12, 8)

    def decode(self, codes: Tensor, condition: Tensor) -> Tensor:
        """Return values ``(B, k)`` of ``codes`` ``(B, latents)``; the output is linear."""
        return self.decoder(torch.cat([codes, condition], dim=1))


class VAEGenerator(NeuralGenerator):
    """MLP VAE on centred latents of unit mean variance, with ex-post density.

    The loss is the mean squared error over elements plus beta times the divergence summed over codes. After training,
    class Gaussians are fitted to the posterior means. Samples are decoded from them, with noise that restores each
    coefficient's variance within classes: codes from the prior would cover a third of it.

    References
    ----------
    Kingma and Welling, "Auto-encoding variational Bayes", 1312.6114; Ghosh et al., "From variational to deterministic
    autoencoders", ICLR 2020 (ex-post density).
    """

    kind = "vae"
    model: VAENetwork

    def build(self) -> VAENetwork:
        """Return encoder and decoder."""
        return VAENetwork(self.size, self.settings.width, self.settings.latents, self.condition_encoder())

    def condition_encoder(self) -> Condition | None:
        """Return the layers that embed the classes' conditions; None for an unconditioned kind."""
        return None

    @property
    def spec(self) -> TrainingSpec:
        """Reconstruction and divergence in one step, on codes and inputs with noise."""
        training, size, latents = self.settings.training, self.size, self.settings.latents
        names = self.model.condition.names if self.model.condition else ()

        def noise(rows: int, generator: torch.Generator) -> dict[str, Tensor]:
            drawn = {"codes": torch.randn(rows, latents, generator=generator, device=generator.device)}
            if training.noise:
                drawn["input"] = torch.randn(rows, size, generator=generator, device=generator.device)
            if names:
                chances = torch.rand(rows, len(names), generator=generator, device=generator.device)
                drawn["absent"] = chances < training.condition_dropout
            return drawn

        losses = partial(vae_losses, training=training)
        step = OptimStep(losses, ("similarity", "reconstruction", "kl", "loss"))
        return TrainingSpec((step,), noise, validation=losses)

    @torch.no_grad()
    def finalize(self, latents: Tensor, labels: Tensor) -> None:
        """Fit the density of the classes' codes, and the noise that samples of these classes lack."""
        values = self.standardised(latents)
        codes, _ = self.model.to(latents.device).encode(values, self._condition(labels, latents.device))
        self.model.cpu()
        density = ClassGaussians.fit(codes, labels, self.settings.shrinkage)
        chosen, stream = density.classes, seeded(0, "fill")
        made = torch.cat([self._decode(density, label, FILL, stream) for label in chosen.tolist()])
        lacking = variance_within(values.cpu(), labels.cpu()) - variance_within(made, chosen.repeat_interleave(FILL))
        self.density, self.residual = density, lacking.clamp(min=0).sqrt()

    @torch.no_grad()
    def sample(self, label: int, count: int, generator: torch.Generator, absent: Sequence[str] = ()) -> Tensor:
        """Draw ``count`` latents ``(count, k)`` of class ``label``: a density's codes, decoded, and noise."""
        values = self._decode(self.require_density(), label, count, generator, absent)
        values = values + self.residual * torch.randn(values.shape, generator=generator)
        return values * self.deviation + self.mean

    def _decode(
        self, density: ClassGaussians, label: int, count: int, generator: torch.Generator, absent: Sequence[str] = ()
    ) -> Tensor:
        """Return standardised samples ``(count, k)`` of class ``label``, without noise."""
        codes = density.sample(label, count, generator)  # (count, latents)
        return self.model.decode(codes, self._condition(torch.full((count,), label), absent=absent))

    def _condition(self, labels: Tensor, device: torch.device | str = "cpu", absent: Sequence[str] = ()) -> Tensor:
        """Return the condition of each label ``(N, e)`` without those that are ``absent``."""
        names = self.model.condition.names if self.model.condition else ()
        self.refuse_absent(absent, names)
        mask = torch.tensor([name in absent for name in names], device=device).expand(len(labels), -1)
        return self.model.embed(*self.classes_of(labels, device), mask if absent else None)


class ConditionedVAEGenerator(VAEGenerator):
    """The same with the class's conditions, each pooled to a vector, through one linear layer in front of both."""

    kind = "conditioned_vae"
    conditioned = True

    def condition_encoder(self) -> LinearCondition:
        """Return one linear layer."""
        return LinearCondition(self.embeddings["pooled"].shape[1], self.settings.embedding)


class MultimodalVAEGenerator(VAEGenerator):
    """`VAEGenerator` that sees each text encoder's embedding whole: vectors, and token sequences by attention pooling.

    In training each embedding of each sample is left out with probability ``generator.training.condition_dropout``,
    independently, so that any of them, or all, may be left out of sampling.
    """

    kind = "multimodal_vae"
    conditioned = True

    @classmethod
    def see(cls, conditions: Conditions | None) -> dict[str, Tensor]:
        """Return the embeddings as they are, by name."""
        return {} if conditions is None else dict(conditions.values)

    def condition_encoder(self) -> FusedConditions:
        """Return an encoder for each embedding."""
        shapes = {name: tuple(value.shape[1:]) for name, value in self.embeddings.items()}
        return FusedConditions(shapes, self.settings.embedding)


def vae_losses(model: VAENetwork, batch: Batch, training: VAETraining) -> Tensor:
    """Return similarity (a mean cosine, only reported), reconstruction, divergence and the minimised loss ``(4,)``.

    Noise goes on the input, not on the target; without noise everything is deterministic.
    """
    values, noise = batch.rows["values"], batch.noise  # (b, k)
    condition = model.embed(batch.rows["classes"], batch.tables, noise.get("absent"))
    inputs = values + training.noise * noise["input"] if "input" in noise else values
    mean, log_variance = model.encode(inputs, condition)
    codes = mean + (0.5 * log_variance).exp() * noise["codes"] if noise else mean
    made = model.decode(codes, condition)
    similarity = functional.cosine_similarity(made.detach(), values, dim=1)  # (b,)
    reconstruction = (made - values).square().mean(dim=1)
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)
    rise = (batch.progress / training.beta_warmup).clamp(max=1) if training.beta_warmup else 1.0
    loss = reconstruction + training.beta * rise * kl
    return torch.stack([similarity, reconstruction, kl, loss]) @ batch.share
