"""Folds that a run does not read: what is chosen without them can be measured on them."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from federations import Federate

from fedgen.cli import main
from fedgen.config.settings import Config
from fedgen.data.settings import DataSettings
from fedgen.errors import ConfigError
from fedgen.task import prepare_task

Tiny = Callable[..., Config]


def test_their_clips_are_neither_trained_on_nor_tested_with(tiny: Tiny) -> None:
    task = prepare_task(tiny("data.leave_out=[1]"))
    assert set(task.store.folds[np.concatenate(task.parts)]) == {2}
    assert set(task.store.folds[task.train_indices]) == {2}
    assert set(task.store.folds[task.store.test_indices(task.config.data.test_fold)]) == {3}


def test_the_test_fold_is_not_left_out() -> None:
    with pytest.raises(ConfigError, match=r"data\.leave_out=\[2, 3\] holds data\.test_fold=3"):
        DataSettings(test_fold=3, leave_out=[2, 3])


def test_a_run_is_evaluated_on_them_afterwards(
    tiny: Tiny, federate: Federate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    federate(tiny("mode=federate", "data.leave_out=[1]"), tmp_path / "run")
    with caplog.at_level(logging.WARNING, logger="fedgen"):
        assert main(["evaluate", str(tmp_path / "run"), "--fold", "1"]) == 0
    assert "no held-out clips" not in caplog.text
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["test_fold"] == 1
    assert main(["evaluate", str(tmp_path / "run"), "--fold", "2"]) == 0
    assert "trained on fold 2: these are no held-out clips" in caplog.text
