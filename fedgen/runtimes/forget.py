"""Forget a node: take its clips out of the closed-form adapters of a run, exactly."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

from fedgen.errors import ConfigError, choose, require
from fedgen.evaluation.zero_shot import zero_shot
from fedgen.node.state import NodeState
from fedgen.report.saved_run import SavedRun
from fedgen.runs.folder import RunFolder, RunState
from fedgen.server.analytic import SUMS, TOTAL, Sums

logger = logging.getLogger(__name__)


def forget(path: Path, node: int) -> None:
    """Subtract the sums of ``node`` from those of the run in ``path``; its adapters are then those of the other nodes.

    Raises
    ------
    ConfigError
        A phase of the run is not mode=analytic, or it has no such node; the node's own sums are not on this machine.
    """
    folder = RunFolder(path)
    saved, state, results = SavedRun.open(folder, folder.config()), folder.state(), folder.results()
    others = [phase for phase in results["phases"] if phase["mode"] != "analytic"]  # these keep more of a node
    require(
        state is not None and not others,
        f"{path} is a run of mode={results['mode']}: only mode=analytic can forget",
    )
    assert state is not None
    choose(str(node), list(results["nodes"]), "--node")
    sums = Sums(saved.task)
    sums.load(state)
    own = sums.parts.pop(str(node), None)
    kept = NodeState(path / "state" / f"node{node}")
    if TOTAL in sums.parts:
        part = kept.load("sums").get(SUMS)
        if part is None:
            raise ConfigError(
                f"{path} has the sum over nodes alone, and the part of node {node} is on its own machine: copy "
                f"state/node{node}/sums of its run folder to {kept.folder}"
            )
        sums.parts[TOTAL] = sums.parts[TOTAL] - part
    elif own is None:
        raise ConfigError(f"{path} has no sums of node {node}")
    require(len(results["nodes"]) > 1, f"{path}: node {node} is the only one that is left")
    weights = sums.adapters().to_torch_state_dict()
    folder.save_adapters(weights, {**saved.task.identity(), "round": state.round})
    state.tensors["adapters"] = weights
    folder.save_state(RunState(state.round, state.tensors | sums.state()[0], state.facts))
    kept.clear()  # not before its part is out of the sum: it could not be taken out again
    results["nodes"].pop(str(node))
    results["forgotten"] = sorted([*results.get("forgotten", []), node])
    if len(saved.task.store):
        saved.adapters.load_state_dict(weights)
        test = saved.task.summaries(saved.task.test_indices)
        results |= asdict(zero_shot(saved.adapters, test, saved.task.targets.heads, saved.classes))
    folder.save_json("results.json", results)
    logger.info("node %d is forgotten: accuracy %.3f; run folder: %s", node, results["accuracy"], path)
