"""A run of which the folder is left: its task, its global adapters and its last synthetic samples, opened again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedgen.assessment import Assessment, assess
from fedgen.errors import ConfigError
from fedgen.evaluation.gate import PROBES
from fedgen.evaluation.zero_shot import zero_shot
from fedgen.models.adapters import Adapters
from fedgen.models.samples import SyntheticTokens
from fedgen.phases import uses_samples
from fedgen.run_folder import RunFolder
from fedgen.server_app import pool_from_state
from fedgen.settings import Config
from fedgen.task import Task, prepare_task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedRun:
    """What a run has left behind.

    Attributes
    ----------
    folder : RunFolder
    task : Task
        What it worked on, on this machine.
    adapters : Adapters
        The global ones, after the last round that was saved.
    round : int
        That round.
    pool : Mapping
        The last synthetic samples of each node, by its number; empty if the run made none.
    """

    folder: RunFolder
    task: Task
    adapters: Adapters
    round: int
    pool: Mapping[int, SyntheticTokens]

    @classmethod
    def open(cls, folder: RunFolder, config: Config) -> SavedRun:
        """Open a run under its own configuration, or one that differs in what is held out or in the device.

        Raises
        ------
        ConfigError, DataError
            The run has no global adapters, or this machine cannot serve its task.
        CheckpointError
            The adapters are missing, damaged, or of another task.
        """
        if config.phase_list[0].mode == "standalone":
            raise ConfigError(f"{folder.path} is a run of mode=standalone: it has no global adapters")
        task = prepare_task(config)
        weights, round_number = folder.load_adapters(task.identity())
        adapters = task.adapters()
        adapters.load_state_dict(weights)
        state = folder.states.latest()
        codec = task.space.codec if uses_samples(config.phase_list) else None
        pool = pool_from_state(state, codec) if state is not None and "seeds" in state.facts else {}
        return cls(folder, task, adapters.eval(), round_number, pool)


def evaluate_again(path: Path, fold: int | None = None) -> tuple[dict[str, Any], Assessment | None]:
    """Score a run's adapters on held-out clips, measure its last samples, and write ``evaluation.json``.

    Parameters
    ----------
    path : Path
        The run's folder.
    fold : int, optional
        The held-out fold; the run's own by default. With another one samples are not measured: what they were made of
        would count as held out.

    Returns
    -------
    results : dict
        ``results.json`` with the scores that were found now.
    assessment : Assessment, optional
        What was measured of the samples.
    """
    folder = RunFolder(path)
    own = config = folder.config()
    if fold is not None:
        if fold not in (config.data.test_fold, *config.data.leave_out):
            logger.warning("%s trained on fold %d: these are no held-out clips", path, fold)
        config = replace(config, data=replace(config.data, test_fold=fold, leave_out=[]))
    run = SavedRun.open(folder, config)
    task, results = run.task, folder.results()
    scores = asdict(zero_shot(run.adapters, task.test_tokens(), task.targets.heads, task.classes))
    same = fold in (None, own.data.test_fold)
    assessment = assess(task, run.pool, results["nodes"], PROBES, quality=True) if same else None
    measured = {} if assessment is None else {"evaluation": assessment.results}
    folder.save_json("evaluation.json", {"test_fold": config.data.test_fold, **scores, **measured})
    return {**results, **scores}, assessment
