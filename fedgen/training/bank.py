"""A node's generators: which serves which class, fitted and sampled together in one codec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedgen.data.conditions import Conditions
from fedgen.data.tokens import TokenSource
from fedgen.errors import ConfigError, DataError, choose, require
from fedgen.models.codec import Codec
from fedgen.models.generators import KINDS, Generator, GeneratorSettings, open_generator
from fedgen.models.samples import SyntheticTokens
from fedgen.models.seeds import seeded

GRANULARITIES = ("unified", "per_class", "per_group")


@dataclass(frozen=True)
class GranularitySettings:
    """How classes share generators: all in one, one each, or one for each named group of classes."""

    name: str = "unified"
    groups: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choose(self.name, GRANULARITIES, "granularity")
        members = [name for names in self.groups.values() for name in names]
        twice = sorted({name for name in members if members.count(name) > 1})
        require(not twice, f"granularity.groups names {', '.join(twice)} more than once")


def slots(granularity: GranularitySettings, classes: list[str]) -> dict[str, list[str]]:
    """Return which classes each generator serves, by the generator's key.

    Parameters
    ----------
    granularity : GranularitySettings
        The key is ``unified``, a class name or a group name.
    classes : list[str]
        Classes of which the node has clips.

    Raises
    ------
    ConfigError
        ``per_group`` without groups, or with classes in no group.
    """
    if granularity.name == "unified":
        return {"unified": list(classes)}
    if granularity.name == "per_class":
        return {name: [name] for name in classes}
    require(bool(granularity.groups), "granularity=per_group needs granularity.groups, which is empty")
    known = {name for names in granularity.groups.values() for name in names}
    missing = [name for name in classes if name not in known]
    require(not missing, f"granularity=per_group: in no group of granularity.groups: {', '.join(missing)}")
    chosen = {group: [name for name in classes if name in names] for group, names in granularity.groups.items()}
    return {group: names for group, names in chosen.items() if names}


class Bank:
    """The generators of one node and the codec that they share.

    Parameters
    ----------
    settings : GeneratorSettings
        Kind, sizes and training of every generator.
    granularity : GranularitySettings
        Which generator serves which class.
    class_names : list[str]
        Name of each global class id.
    conditions : Conditions, optional
        What the target has for each global class id; conditioned kinds see what ``settings.conditions`` selects.

    Raises
    ------
    ConfigError
        Unknown kind, or conditions missing or not one for each class.
    """

    def __init__(
        self,
        settings: GeneratorSettings,
        granularity: GranularitySettings,
        class_names: list[str],
        conditions: Conditions | None = None,
    ) -> None:
        kind = KINDS[choose(settings.kind, KINDS, "generator.kind")]
        self.conditions = conditions.select(settings.conditions) if conditions and kind.conditioned else None
        if kind.conditioned and (conditions is None or len(conditions) != len(class_names)):
            got = "none" if conditions is None else str(len(conditions))
            raise ConfigError(
                f"generator.kind={settings.kind} needs a condition for each of {len(class_names)} classes, got {got}"
            )
        self.settings, self.granularity = settings, granularity
        self.class_names = list(class_names)
        self.codec: Codec | None = None
        self.generators: dict[str, Generator] = {}
        self.classes: dict[str, list[str]] = {}  # what each generator was fitted to

    @property
    def condition_sizes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each embedding that the generators are conditioned on, by name; empty for unconditioned kinds."""
        return self.conditions.sizes if self.conditions else {}

    def new_generator(self, size: int) -> Generator:
        """Return an unfitted generator of the bank's settings for latents of ``size`` coefficients."""
        return open_generator(self.settings, size, self.conditions.pooled() if self.conditions else None)

    def fit(self, source: TokenSource, seed: int, codec: Codec | None = None) -> list[dict[str, float | str]]:
        """Fit every generator to its classes' clips of ``source``, on the source's device.

        The codec is fitted at the first call (or given, when nodes share one) and kept: a later call goes on training
        in the same latent space.

        Returns
        -------
        list[dict]
            One entry for each generator and epoch: ``generator``, ``epoch`` and the losses by component.

        Raises
        ------
        ConfigError
            The granularity does not cover the classes present.
        """
        present = [self.class_names[label] for label in source.labels.unique().tolist()]
        chosen = slots(self.granularity, present)
        if self.codec is None:
            self.codec = codec or Codec.fit(source, self.settings.codec)
        latents = self.codec.encode_all(source)
        losses: list[dict[str, float | str]] = []
        for key, names in chosen.items():
            rows = self._rows(source.labels, names)
            generator = self.generators.get(key) or self.new_generator(self.codec.size)
            epochs = generator.fit(latents[rows.to(latents.device)], source.labels[rows], _slot_seed(seed, key))
            losses += [{"generator": key, "epoch": number, **epoch} for number, epoch in enumerate(epochs)]
            self.generators[key], self.classes[key] = generator, names
        return losses

    def sample(self, counts: Mapping[int, int], seed: int, device: torch.device | str = "cpu") -> SyntheticTokens:
        """Draw samples: ``counts`` says how many of each global class id.

        A class's samples depend on its generator, the seed and its id alone, not on which other classes are asked for.

        Raises
        ------
        DataError
            The bank is not fitted, or owns no generator of a class.
        """
        if self.codec is None:
            raise DataError("the bank is not fitted: it has no codec to decode samples with")
        owners = {name: key for key, names in self.classes.items() for name in names}
        drawn, labels = [torch.zeros(0, self.codec.size)], [torch.zeros(0, dtype=torch.long)]
        for label, count in sorted(counts.items()):
            generator = self.generators[self._owner(owners, label)]
            drawn.append(generator.sample(label, count, seeded(seed, label)).cpu())
            labels.append(torch.full((count,), label))
        return SyntheticTokens(self.codec, torch.cat(drawn), torch.cat(labels), seed, device)

    def _rows(self, labels: Tensor, names: list[str]) -> Tensor:
        wanted = torch.tensor([self.class_names.index(name) for name in names])
        return torch.isin(labels, wanted).nonzero().squeeze(1)

    def _owner(self, owners: Mapping[str, str], label: int) -> str:
        name = self.class_names[label] if 0 <= label < len(self.class_names) else f"class id {label}"
        if name not in owners:
            raise DataError(f"no generator for {name}; this node has generators for {', '.join(sorted(owners))}")
        return owners[name]


def _slot_seed(seed: int, key: str) -> int:
    return seeded(seed, key).initial_seed()
