"""Run a configuration in this process: a federation over the local grid, or a reference without Flower."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from fedgen.client_app import app as client_app
from fedgen.config import to_yaml
from fedgen.local_grid import LocalGrid, run_server
from fedgen.phases import plan
from fedgen.progress import RoundsBar, leave_log
from fedgen.references import run_reference
from fedgen.run_folder import RunFolder
from fedgen.server_app import app as server_app
from fedgen.settings import Config


def run(config: Config) -> dict[str, Any]:
    """Run ``config``, whose ``run_dir`` is set, and return the content of ``results.json``.

    Raises
    ------
    FedgenError
        What went wrong, in words for the user.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)  # our own progress lines say it shorter
    try:
        if not plan(config.phase_list)[0].mode.federated:
            return run_reference(config)
        values = {"config": to_yaml(config)}
        grid = LocalGrid(client_app, config.partition.nodes, values)
        run_server(server_app, grid, values)
    finally:
        RoundsBar.stop()
        leave_log()
    return RunFolder(Path(str(config.run_dir))).results()
