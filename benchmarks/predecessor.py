"""The predecessor's generator, written anew from its description, for benchmarks to compare with.

What is known of it: a VAE of the flattened sequence, shortened to few tokens by interpolation, not standardised; Tanh
on the output; clip after clip (batches of one), plain Adam at a constant rate, the weight of the divergence rising over
100 epochs however many are trained, a loss read back (``.item()``) at each step; samples decoded from N(0, I) and
up-sampled. It has 9.2 million parameters at 4 tokens of 768, 28 at 16, 104 at 64 and 1.91 billion at 1214: just what
two hidden layers of 1024 on each side and 256 latents give.

What is not known, and chosen kindly: ReLU, no dropout, the weight of the divergence (fedgen's), and that clips are
shortened once, not in every epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Recipe:
    """How the predecessor's generator is built and trained.

    Parameters
    ----------
    tokens : int
        Length that sequences are shortened to.
    epochs : int
    lr : float
        Of Adam, constant.
    width, latents : int
        Hidden width and length of the codes.
    beta : float
        Weight of the divergence, summed over codes, relative to the mean squared error over elements.
    warmup : int
        Epochs over which that weight rises.
    """

    tokens: int = 4
    epochs: int = 100
    lr: float = 1e-3
    width: int = 1024
    latents: int = 256
    beta: float = 3e-5
    warmup: int = 100


class FlatVAE(nn.Module):
    """VAE of sequences ``(B, L, D)`` as vectors of ``L * D`` values."""

    def __init__(self, recipe: Recipe, token_width: int) -> None:
        super().__init__()
        size, width, latents = recipe.tokens * token_width, recipe.width, recipe.latents
        self.shape, self.latents = (recipe.tokens, token_width), latents
        self.encoder = nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(width, latents), nn.Linear(width, latents)
        hidden = (nn.Linear(latents, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.decoder = nn.Sequential(*hidden, nn.Linear(width, size), nn.Tanh())

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is made of ``tokens`` ``(B, L, D)``, and mean and log variance ``(B, latents)`` of the codes."""
        hidden = self.encoder(tokens.flatten(1))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        codes = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        return self.decode(codes), mean, log_variance

    def decode(self, codes: Tensor) -> Tensor:
        """Return sequences ``(B, L, D)`` of ``codes`` ``(B, latents)``."""
        made: Tensor = self.decoder(codes)
        return made.view(-1, *self.shape)


def parameters(tokens: int, token_width: int = 768) -> int:
    """Return the parameters of the predecessor's generator at a length, without making them."""
    with torch.device("meta"):
        return sum(value.numel() for value in FlatVAE(Recipe(tokens), token_width).parameters())


def resized(tokens: Tensor, length: int) -> Tensor:
    """Return ``tokens`` ``(B, S, D)`` interpolated linearly to ``(B, length, D)``."""
    return functional.interpolate(tokens.transpose(1, 2), size=length, mode="linear").transpose(1, 2).contiguous()


class Training:
    """The predecessor's loop.

    Parameters
    ----------
    clips : Tensor
        ``(N, S, D)``, float32, on the device to train on; of one class for a generator of its own.
    recipe : Recipe
    seed : int
        Seeds torch: weights, order and codes.
    """

    def __init__(self, clips: Tensor, recipe: Recipe, seed: int) -> None:
        torch.manual_seed(seed)
        self.recipe, self.rows = recipe, resized(clips, recipe.tokens)
        self.model = FlatVAE(recipe, clips.shape[2]).to(clips.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=recipe.lr)

    def epoch(self, number: int) -> float:
        """Train one epoch, counted from 0, and return its mean loss."""
        beta = self.recipe.beta * min(1.0, number / self.recipe.warmup)
        total = 0.0
        for row in torch.randperm(len(self.rows)).tolist():
            clip = self.rows[row : row + 1]
            made, mean, log_variance = self.model(clip)
            divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
            loss = functional.mse_loss(made, clip) + beta * divergence
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        return total / len(self.rows)


def fit(clips: Tensor, recipe: Recipe, seed: int) -> FlatVAE:
    """Return a generator trained on ``clips`` ``(N, S, D)``: see `Training`."""
    training = Training(clips, recipe, seed)
    for number in range(recipe.epochs):
        training.epoch(number)
    return training.model.eval()


@torch.no_grad()
def sample(model: FlatVAE, count: int, length: int, seed: int) -> Tensor:
    """Draw ``count`` sequences ``(count, length, D)``, on the CPU, from N(0, I); up-sampled linearly."""
    codes = torch.randn(count, model.latents, generator=torch.Generator().manual_seed(seed))
    return resized(model.cpu().decode(codes), length)
