"""What synthetic samples are good for, in a minute: three nodes, each with classes of its own.

    python examples/first_run.py

Overrides after the name of the file go to every run, such as ``rounds=10``.
"""

from __future__ import annotations

import sys

from fedgen import run

MODES = {
    "standalone": "every node alone",
    "federate": "the average of the nodes' adapters",
    "combined": "the average, trained on everyone's synthetic samples",
    "centralised": "everyone's clips in one place",
}


def main(overrides: list[str]) -> dict[str, float]:
    """Run every mode and return its accuracy."""
    found = {}
    for mode, meaning in MODES.items():
        results = run("experiment=demo", f"mode={mode}", "rounds=4", *overrides, run_dir=f"runs/first_run/{mode}")
        found[mode] = results["accuracy"]
        worst = min(results["per_class"], key=results["per_class"].get)
        print(f"{mode:12} {found[mode]:.3f}  {meaning}; hardest class: {worst}")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
