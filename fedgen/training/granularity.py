"""Granularity: which generator serves which class."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedgen.errors import choose, require
from fedgen.plain import check_names

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
        check_names([*self.groups, *members], "granularity.groups")
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
