"""The baseline of all kinds: a Gaussian for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import add

import torch
from torch import Tensor

from fedgen.errors import ConfigError, DataError
from fedgen.models.generators.base import Generator, Part
from fedgen.models.generators.density import ClassGaussians, ClassStatistics, class_widths
from fedgen.models.memory import BatchLimit
from fedgen.models.settings import Schedule

FEWEST_SHARED = 3  # clips of a class: the mean and scatter of one or two give just these clips


class GaussianGenerator(Generator):
    """Class Gaussians of the latents, in closed form.

    Nodes that share it exchange the number, mean and scatter of each class's clips, which add up.

    References
    ----------
    Luo et al., "No fear of heterogeneity" (CCVR), 2106.05001; Beitollahi et al., "FedPFT", 2402.01862.
    """

    kind = "gaussian"
    restarts = True

    def forget(self) -> None:
        """Drop shared statistics and densities."""
        self.density: ClassGaussians | None = None
        self.statistics = ClassStatistics.empty(self.size, self.within is None)

    def fit(
        self, part: Part, schedule: Schedule | None = None, limit: BatchLimit | None = None
    ) -> list[dict[str, float]]:
        """Fit means and covariances anew, or add a node's statistics to those of a shared generator.

        The loss is the mean squared distance to the class mean. Raises `ConfigError` if the shared statistics of a
        class would give its few clips away.
        """
        own = ClassStatistics.measure(part.latents, part.labels)
        samples, size = int(own.counts.sum()), own.means.shape[1]
        assert own.scatters is not None
        losses = [{"loss": float(own.scatters.diagonal(dim1=1, dim2=2).sum() / (samples * size))}]
        if schedule is None:
            widths = None if self.within is None else class_widths(part.latents, part.labels, self.within)
            self.density = self._density(own, widths)
            return losses
        few = own.classes[own.counts < FEWEST_SHARED].tolist()
        if few:
            raise ConfigError(
                f"sharing=shared with generator.kind={self.kind}: classes of ids {few} have fewer than {FEWEST_SHARED} "
                "clips on this node, and their statistics would give these clips away; use sharing=local"
            )
        self.statistics += own if self.within is None else replace(own, scatters=None)
        return losses

    def finalize(self, latents: Tensor, labels: Tensor) -> None:
        """Compute the densities from the shared statistics; nothing of them is the node's own."""
        if not len(self.statistics.classes):
            raise DataError("the generator has no shared statistics to settle on")
        self.density = self._density(self.statistics)

    def _density(self, statistics: ClassStatistics, widths: Tensor | None = None) -> ClassGaussians:
        if self.within is not None:
            return ClassGaussians.around(statistics, self.within, widths)
        return ClassGaussians.from_statistics(statistics, self.settings.shrinkage)

    def sample(self, label: int, count: int, generator: torch.Generator, absent: Sequence[str] = ()) -> Tensor:
        """Draw ``count`` latents ``(count, k)`` of class ``label``."""
        self.refuse_absent(absent)
        if self.density is None:
            raise DataError("the generator is not fitted")
        return self.density.sample(label, count, generator)

    def shared_state(self) -> dict[str, Tensor]:
        """Return class ids, counts and means, and scatters where covariances are those of clips."""
        return self.statistics.state()

    def load_shared_state(self, state: dict[str, Tensor]) -> None:
        """Load statistics."""
        self.statistics = ClassStatistics.from_state(state, self.size, self.within is None)
        self.density = None

    @classmethod
    def merge(cls, states: Sequence[dict[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
        """Return the statistics of all clips together; they carry their weights in themselves."""
        parts = [ClassStatistics.from_state(own, own["means"].shape[-1], "scatters" in own) for own in states]
        return reduce(add, parts).state()

    def state(self) -> dict[str, Tensor]:
        """Return the densities."""
        return {} if self.density is None else self.density.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Load the densities of ``state``."""
        self.density = ClassGaussians.from_state(state, self.size)
