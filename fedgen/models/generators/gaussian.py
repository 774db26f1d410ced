"""The honest baseline: a Gaussian for each class."""

from __future__ import annotations

import torch
from torch import Tensor

from fedgen.errors import DataError
from fedgen.models.density import ClassGaussians
from fedgen.models.generators.base import Generator


class GaussianGenerator(Generator):
    """Class Gaussians of the latents, in closed form.

    References
    ----------
    Luo et al., "No fear of heterogeneity" (CCVR), 2106.05001; Beitollahi et al., "FedPFT", 2402.01862.
    """

    kind = "gaussian"
    density: ClassGaussians | None = None

    def fit(self, latents: Tensor, labels: Tensor, seed: int) -> list[dict[str, float]]:
        """Fit means and covariances anew; the loss is the mean squared distance to the class mean."""
        self.density = ClassGaussians.fit(latents, labels, self.settings.shrinkage)
        rows = torch.searchsorted(self.density.classes, labels.cpu())
        return [{"loss": float((latents.cpu() - self.density.means[rows]).square().mean())}]

    def sample(self, label: int, count: int, generator: torch.Generator) -> Tensor:
        """Draw ``count`` latents ``(count, k)`` of class ``label``."""
        if self.density is None:
            raise DataError("the generator is not fitted")
        return self.density.sample(label, count, generator)

    def state(self) -> dict[str, Tensor]:
        """Return the densities."""
        return {} if self.density is None else self.density.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over the densities of ``state``."""
        self.density = ClassGaussians.from_state(state, self.size)
