"""Translation of the predecessor's JSON configuration into Hydra overrides or an experiment file."""

from fedgen.migrate.table import TABLE, Key
from fedgen.migrate.translate import Translation, command, experiment, overrides, report, translate

__all__ = ["TABLE", "Key", "Translation", "command", "experiment", "overrides", "report", "translate"]
