"""A run on a disk of its own that fills up in round 2: ``full_disk.py FOLDER RESULTS OVERRIDES...``.

Runs in a mount namespace, where it may mount what it likes and the disk goes with the process. It prints the error,
makes room, lets the run go on and copies its results to where they outlive the disk.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path

from flwr.app import Context, Message

from fedgen.client_app import app as client_app
from fedgen.config.compose import load_config, to_yaml
from fedgen.errors import FedgenError
from fedgen.runtimes.local import LocalGrid, run_server
from fedgen.runtimes.local import run_config as run
from fedgen.server_app import app as server_app

SIZE = "64m"


def main(folder: Path, results: Path, overrides: list[str]) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], check=True)
    filler = folder / "filler"

    def fill(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.content.config_records["config"].get("round") == 2:
            with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        return reply

    config = load_config([*overrides, f"run_dir={folder / 'run'}"])
    values = {"config": to_yaml(config)}
    try:
        run_server(server_app, LocalGrid(fill, config.partition.nodes, values), values)  # type: ignore[arg-type]
    except FedgenError as error:
        print(error)
    filler.unlink()
    run(load_config([f"resume={folder / 'run'}"]))
    shutil.copy(folder / "run" / "results.json", results)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
