"""Translation of the predecessor's JSON configuration into Hydra overrides or an experiment file.

``table.py`` says where each old key goes; ``decisions.py`` and ``division.py`` decide what several of them say at once.
"""

from fedgen.migrate.overrides import command, experiment, overrides, save_experiment
from fedgen.migrate.report import report
from fedgen.migrate.table import TABLE, Key
from fedgen.migrate.translation import Translation, translate

__all__ = [
    "TABLE",
    "Key",
    "Translation",
    "command",
    "experiment",
    "overrides",
    "report",
    "save_experiment",
    "translate",
]
