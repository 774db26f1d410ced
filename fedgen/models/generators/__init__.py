"""Generators of codec latents by kind."""

from __future__ import annotations

from torch import Tensor

from fedgen.data.targets import Conditions
from fedgen.errors import choose
from fedgen.models.generators.base import Generator, Part
from fedgen.models.generators.gan import GANGenerator
from fedgen.models.generators.gaussian import GaussianGenerator
from fedgen.models.generators.vae import ConditionedVAEGenerator, MultimodalVAEGenerator, VAEGenerator
from fedgen.models.settings import GeneratorSettings, GeneratorTraining

KINDS: dict[str, type[Generator]] = {
    kind.kind: kind
    for kind in (GaussianGenerator, VAEGenerator, ConditionedVAEGenerator, MultimodalVAEGenerator, GANGenerator)
}

__all__ = ["KINDS", "Generator", "GeneratorSettings", "GeneratorTraining", "Part", "open_generator"]


def open_generator(
    settings: GeneratorSettings, size: int, conditions: Conditions | None = None, within: Tensor | None = None
) -> Generator:
    """Return an unfitted generator of ``settings.kind``: arguments and errors are those of `Generator`."""
    return KINDS[choose(settings.kind, KINDS, "generator.kind")](settings, size, conditions, within)
