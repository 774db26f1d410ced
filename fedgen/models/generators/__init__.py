"""Generators of codec latents by kind."""

from __future__ import annotations

from torch import Tensor

from fedgen.errors import choose
from fedgen.models.generators.base import Generator, GeneratorSettings, GeneratorTraining
from fedgen.models.generators.gaussian import GaussianGenerator
from fedgen.models.generators.vae import ConditionedVAEGenerator, VAEGenerator

KINDS: dict[str, type[Generator]] = {
    kind.kind: kind for kind in (GaussianGenerator, VAEGenerator, ConditionedVAEGenerator)
}

__all__ = ["KINDS", "Generator", "GeneratorSettings", "GeneratorTraining", "open_generator"]


def open_generator(settings: GeneratorSettings, size: int, conditions: Tensor | None = None) -> Generator:
    """Return an unfitted generator of ``settings.kind`` for latents of ``size`` coefficients.

    Raises
    ------
    ConfigError
        Unknown kind, or a conditioned kind without ``conditions``.
    """
    return KINDS[choose(settings.kind, KINDS, "generator.kind")](settings, size, conditions)
