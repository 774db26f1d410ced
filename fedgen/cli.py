"""The ``fedgen`` command."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig

from fedgen.config.compose import config_dir, explain, load_config, opened, resume_config
from fedgen.config.settings import Config
from fedgen.data.progress import ConsoleHandler, made_quiet, quiet
from fedgen.errors import FedgenError, require, visible
from fedgen.render.settings import add_options, settings_of
from fedgen.runtimes.sweeps import failures, objective

logger = logging.getLogger(__name__)

LOUD = ("run", "prepare", "simulate", "submit", "evaluate", "render", "report")  # what has a --quiet
QUIET_LOGS = [f"++hydra.{name}_logging.handlers.console.level=WARNING" for name in ("job", "hydra")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that ``arguments`` name and return its exit code; errors meant for the user have no traceback."""
    options, rest = _parser().parse_known_args(arguments)
    try:
        with made_quiet(getattr(options, "quiet", False)):
            return int(options.command(options, rest) or 0)
    except HydraException as error:
        message = str(explain(error))
    except FedgenError as error:
        message = str(error)
    except KeyboardInterrupt:
        message = "interrupted"
    print(f"error: {visible(message)}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    about = "Train adapters across sites that exchange synthetic tokens."
    parser = argparse.ArgumentParser(prog="fedgen", description=about)
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, command: object, about: str, folders: str | None = None) -> argparse.ArgumentParser:
        own_help = name not in ("run", "prepare")  # theirs is Hydra's
        sub = commands.add_parser(name, help=about, description=about, add_help=own_help)
        sub.set_defaults(command=command)
        if name in LOUD:
            sub.add_argument("--quiet", action="store_true", help="print warnings and errors alone")
        if folders:
            sub.add_argument("folders", nargs=folders, type=Path, metavar="RUN", help="run folder")
        return sub

    add("run", run_command, "run a configuration; takes Hydra overrides, and -m for sweeps")
    add("prepare", prepare_command, "encode the clips that the embedding store misses; takes Hydra overrides")
    simulate = add("simulate", simulate_command, "run a configuration in Flower's simulation; takes Hydra overrides")
    simulate.add_argument("--cpus", type=int, default=1, help="CPU cores for each node")
    simulate.add_argument("--gpus", type=float, default=0.0, help="GPUs for each node; 0 hides them")
    submit = add("submit", submit_command, "run a configuration on SuperNodes; takes Hydra overrides")
    submit.add_argument("connection", metavar="CONNECTION", help="the SuperLink's name in Flower's configuration")
    compare = add(
        "compare", compare_command, "print one table of several runs, best first; seeds of one setting as one", "+"
    )
    compare.add_argument(
        "--over", default="seed", metavar="KEY,...", help="runs that differ only in these settings are one row; seed"
    )
    add("info", info_command, "print versions, the device, and every configuration group with its choices")
    evaluate = add("evaluate", evaluate_command, "score a run's adapters again, and measure its synthetic samples", "+")
    evaluate.add_argument("--fold", type=int, help="held-out fold; the run's own by default")
    audit = add("audit", audit_command, "attack what the nodes of a run sent, as who sees every message would")
    audit.add_argument("folder", type=Path, metavar="RUN", help="run folder; the clips must be on this machine")
    audit.add_argument("--messages", type=Path, metavar="FOLDER", help="all messages, as record=FOLDER wrote them")
    add_options(add("render", render_command, "make pictures of what a run's adapters make of sound"))
    page = add("report", report_command, "write one HTML page about runs, and draw their plots again", "+")
    page.add_argument(
        "--out", type=Path, metavar="FILE.html", help="the page; report.html in the runs' folder by default"
    )
    saved = add("checkpoints", checkpoints_command, "list the saved generators of a run")
    saved.add_argument("action", choices=["ls"])
    saved.add_argument("folder", type=Path, metavar="FOLDER", help="run folder, or folder of checkpoints")
    saved.add_argument("names", nargs="*", metavar="NAME", help="only these, as ls names them; all by default")
    node = add("node", node_command, "check that this machine is ready to be a node; takes the run's Hydra overrides")
    node.add_argument("action", choices=["check"])
    node.add_argument("--node-config", type=Path, required=True, metavar="FILE.toml", help="what the node is and has")
    node.add_argument("--root-certificates", type=Path, metavar="CA.crt", help="what vouches for the server")
    node.add_argument("--key", type=Path, help="the node's private key")
    node.add_argument("--superlink", metavar="HOST:PORT", help="ask the server, too")
    migrate = add("migrate", migrate_command, "translate a JSON configuration of the predecessor, FedA2V")
    migrate.add_argument("old", type=Path, metavar="OLD.json")
    migrate.add_argument("--experiment", metavar="NAME", help="print an experiment file instead of a command")
    return parser


def run_command(options: argparse.Namespace, overrides: list[str]) -> int:
    """``fedgen run``: hand over to Hydra, which makes the run folder and handles sweeps."""
    resumed = resume_config([text for text in overrides if not text.startswith("-")])
    if resumed is not None:
        return _resume(resumed, overrides)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors reach us instead of being printed by Hydra
    sweep_first = sorted(opened(overrides), key=lambda text: text not in ("-m", "--multirun"))  # argparse wants it so
    sys.argv = ["fedgen run", *sweep_first, *(QUIET_LOGS if quiet() else ())]
    with failures() as failed:

        def job(values: DictConfig) -> float:
            return objective(values, HydraConfig.get(), failed)

        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")(job)()
    return 0


def _resume(config: Config, overrides: Sequence[str]) -> int:
    """Go on with an interrupted run, in its folder and with its log."""
    from fedgen.runtimes.local import run_config as run

    flags = [text for text in overrides if text.startswith("-")]
    if flags:
        raise FedgenError(f"resume={config.resume} goes on with one run; {' '.join(flags)} makes no sense with it")
    _log_to_terminal()
    run(config)
    return 0


def prepare_command(options: argparse.Namespace, overrides: list[str]) -> None:
    """``fedgen prepare``: encode clips, public sounds and class prompts, once; with ``data=nodes`` only the last."""
    from fedgen.config.phases import uses_samples
    from fedgen.data.targets import cache_folder, prepare_targets
    from fedgen.models.public import public_space
    from fedgen.task import prepare_store, use_hardware

    _log_to_terminal()
    config = load_config(overrides)
    folder, classes = cache_folder(config.target), config.data.classes
    if not (config.data.on_nodes and folder and classes):
        store = prepare_store(config, verify=True)
        logger.info("%d clips of %d classes, tokens %s, in %s", len(store), len(store.classes), store.shape, store.path)
        classes = store.classes
        if uses_samples(config.phase_list):
            public_space(config.encoder, config.codec, config.generator.lengths)
    if folder:
        heads = prepare_targets(classes, config.target, use_hardware(config)).heads
        shapes = ", ".join(f"{head} {tuple(value.shape[1:])}" for head, value in heads.items())
        logger.info("targets of %d classes, %s, in %s", len(classes), shapes, folder)


def simulate_command(options: argparse.Namespace, overrides: list[str]) -> None:
    """``fedgen simulate``: the same apps in Flower's simulation, every node in a process of its own."""
    from fedgen.runtimes.simulation import simulate

    _log_to_terminal()
    config = load_config(overrides)
    folder = config.run_dir or time.strftime("runs/%Y-%m-%d/%H-%M-%S")
    simulate(replace(config, run_dir=folder), options.cpus, options.gpus)


def submit_command(options: argparse.Namespace, overrides: list[str]) -> None:
    """``fedgen submit``: the apps on a SuperLink and its SuperNodes, with an exit code that tells the truth."""
    from fedgen.config.compose import paths_of
    from fedgen.runtimes.simulation import submit

    _log_to_terminal()
    resumed = dict(text.split("=", 1) for text in overrides if text.startswith("resume="))
    paths = resumed or paths_of(load_config(overrides))  # the configuration of a resumed run is on the server
    for key, path in paths.items():
        require(Path(path.strip("'\"")).is_absolute(), f"{key}={path} must be an absolute path, on the server")
    submit(options.connection, overrides)


def compare_command(options: argparse.Namespace, rest: list[str]) -> None:
    """``fedgen compare``: one table of several runs."""
    from fedgen.report.comparison import compared, unsure
    from fedgen.report.tables import comparison_table, show, terminal_width
    from fedgen.runs.folder import run_folders

    _refuse(rest)
    folders = run_folders(options.folders, finished=True)
    show(comparison_table(compared(folders, options.over.split(",")), terminal_width()))
    for warning in unsure(folders):
        logger.warning(warning)


def info_command(options: argparse.Namespace, rest: list[str]) -> None:
    """``fedgen info``: what is installed, on which device, and what there is to choose."""
    from fedgen.report.tables import show
    from fedgen.runtimes.info import groups, versions

    _refuse(rest)
    show(versions())
    show(groups())


def evaluate_command(options: argparse.Namespace, rest: list[str]) -> None:
    """``fedgen evaluate``: score the saved global adapters on the held-out clips, and measure the last samples."""
    from fedgen.report.recorder import show_samples
    from fedgen.report.saved_run import evaluate_again
    from fedgen.report.tables import comparison_table, show, terminal_width
    from fedgen.runs.folder import run_folders

    _refuse(rest)
    _log_to_terminal()
    wrong = []
    for folder in run_folders(options.folders, finished=True):
        try:
            results, assessment = evaluate_again(folder.path, options.fold)
        except FedgenError as error:  # the other runs are evaluated all the same
            wrong.append(f"{folder.path}: {error}")
            continue
        if not quiet():
            show(comparison_table({str(folder.path): results}, terminal_width()))
        if assessment is not None:
            show_samples(assessment, folder)
            wrong += [f"{folder.path}: {assessment.leak}"] if assessment.leak else []
    if wrong:
        raise FedgenError("\n".join(wrong))


def audit_command(options: argparse.Namespace, rest: list[str]) -> None:
    """``fedgen audit``: which of a run's clips can be told from what was sent; writes ``audit.json`` and a plot."""
    from fedgen.evaluation.assessment import Assessment
    from fedgen.report.recorder import say_gate, show_samples
    from fedgen.report.saved_run import SavedRun
    from fedgen.runs.folder import RunFolder

    _refuse(rest)
    _log_to_terminal()
    folder = RunFolder(options.folder)
    run = SavedRun.open(folder, folder.config())
    report, gate = run.audit(options.messages)
    found = Assessment({"gate": gate}, None, run.classes, report)
    show_samples(found, folder)
    say_gate(gate)
    if found.leak is not None:
        raise found.leak


def render_command(options: argparse.Namespace, rest: list[str]) -> None:
    """``fedgen render``: what the adapters make of sound becomes pictures, with those of the classes' own prompts."""
    from fedgen.render.pictures import render

    _refuse(rest)
    _log_to_terminal()
    render(options.folder, settings_of(options))


def report_command(options: argparse.Namespace, rest: list[str]) -> None:
    """``fedgen report``: one page about the runs, and the plots of those that have finished again."""
    from fedgen.report.page import draw_again, write_report
    from fedgen.runs.folder import run_folders

    _refuse(rest)
    _log_to_terminal()
    folders = [folder.path for folder in run_folders(options.folders)]
    page = write_report(folders, options.out)
    for folder in folders:
        draw_again(folder)
    logger.info("%s", page)


def checkpoints_command(options: argparse.Namespace, rest: list[str]) -> None:
    """``fedgen checkpoints ls``: a line for each checkpoint of generators in a folder."""
    from fedgen.report.listing import checkpoint_folder, overview
    from fedgen.report.tables import show

    _refuse(rest)
    show(overview(checkpoint_folder(options.folder), options.names))


def node_command(options: argparse.Namespace, overrides: list[str]) -> int:
    """``fedgen node check``: what is sound on this machine, and what is wrong; exit code 1 if anything is."""
    from fedgen.report.tables import show
    from fedgen.runtimes.node_check import check_node, findings_table

    given = options.root_certificates, options.key, options.superlink
    findings = check_node(options.node_config, load_config(overrides), bool(overrides), *given)
    show(findings_table(findings))
    return 0 if all(finding.sound for finding in findings) else 1


def migrate_command(options: argparse.Namespace, rest: list[str]) -> None:
    """``fedgen migrate``: print what an old configuration is here, and on standard error what became of every key."""
    from fedgen.config.migrate import command, experiment, overrides, report, translate

    _refuse(rest)
    result = translate(options.old)
    report(result)
    settings = result.finished(str(options.old))
    if options.experiment:
        print(experiment(settings, options.experiment, options.old.name).rstrip())
    else:
        print(command(overrides(settings)))


def _refuse(rest: Sequence[str]) -> None:
    if rest:
        raise FedgenError(f"unknown arguments: {' '.join(rest)}")


def _log_to_terminal() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[ConsoleHandler()])


if __name__ == "__main__":
    sys.exit(main())
