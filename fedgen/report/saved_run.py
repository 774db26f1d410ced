"""Reload a run from its folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fedgen.config.phases import uses_samples
from fedgen.config.settings import Config
from fedgen.data.audio import read_audio, resample
from fedgen.data.encoders import open_encoder
from fedgen.data.seeds import seeded
from fedgen.data.store import without_clips
from fedgen.data.targets import prepare_targets
from fedgen.errors import DataError, choose, require
from fedgen.evaluation.assessment import Assessment, assess, clips_of
from fedgen.evaluation.audit import AUDIT, Sent, audit_run, verdict_of
from fedgen.evaluation.zero_shot import zero_shot
from fedgen.messages.recorded import read_recorded, sent_in
from fedgen.models.adapters import Adapters
from fedgen.models.codec import Codec
from fedgen.models.samples import SyntheticTokens
from fedgen.node.state import NodeState
from fedgen.privacy.result import Report
from fedgen.privacy.settings import PROBES
from fedgen.runs.folder import RunFolder, pool_from_state
from fedgen.task import Task, prepare_task, use_hardware

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedRun:
    """A reloaded run.

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

    @property
    def classes(self) -> list[str]:
        """Class names by id."""
        return self.task.classes

    @property
    def codec(self) -> Codec:
        """The public codec of the run: ``encode`` tokens to latents, ``decode`` latents to tokens."""
        return self.task.space.codec

    def tokens(self, *files: str | Path) -> Tensor:
        """Return the tokens of sound files, ``(N, S, D)``, float32.

        Raises
        ------
        DataError
            A file cannot be read.
        """
        encoder = open_encoder(self.task.config.encoder, self.task.device)
        sounds = [resample(*read_audio(Path(file)), encoder.sample_rate) for file in files]
        return encoder(sounds).float()

    @torch.no_grad()
    def __call__(self, *files: str | Path) -> dict[str, Tensor]:
        """Return the adapters' outputs for sound files: ``(N, *shape of the target)`` by head."""
        outputs = self.adapters(self.tokens(*files).to(self.task.device))
        return {name: value.float().cpu() for name, value in outputs.items()}

    def nearest(self, *files: str | Path) -> list[str]:
        """Return the class whose target is nearest to each file's output: the mean cosine over heads decides."""
        similarity = torch.zeros(len(files), len(self.classes))
        for name, value in self(*files).items():
            targets = functional.normalize(self.task.targets.heads[name].flatten(1).cpu(), dim=1)
            similarity += functional.normalize(value.flatten(1), dim=1) @ targets.T
        return [self.classes[place] for place in similarity.argmax(dim=1).tolist()]

    def samples(self, name: str, count: int) -> Tensor:
        """Return ``count`` of the run's last synthetic samples of a class, decoded: ``(count, O, D)``, float32.

        Raises
        ------
        ConfigError
            The class is unknown, or there are fewer samples.
        """
        label = self.classes.index(choose(name, self.classes, "class"))
        own = [samples.latents[samples.labels == label] for samples in self.pool.values()]
        latents = torch.cat(own) if own else torch.zeros(0, self.codec.size)
        require(count <= len(latents), f"{self.folder.path} has {len(latents)} samples of {name}, not {count}")
        return self.codec.decode(latents[:count], seeded(0, "samples", name))

    def sent(self, messages: Path | None = None) -> dict[int, Sent]:
        """Return each node's messages: all those in a folder of ``record``, or the content of the last round.

        Raises
        ------
        ConfigError
            ``messages`` holds none.
        """
        if messages is not None:
            return sent_in(read_recorded(messages))
        found, strategy = {}, self.task.config.strategy
        for node, samples in self.pool.items():
            seen = strategy.send == "all" and not strategy.secure.used
            adapters = NodeState(self.folder.path / "state" / f"node{node}").adapters() if seen else []
            found[node] = Sent(samples.latents.cpu(), samples.labels, adapters)
        return found

    def audit(self, messages: Path | None = None) -> tuple[Report | None, dict[str, Any]]:
        """Attack the nodes' messages, and return the figures and the gate's verdict; needs the nodes' clips.

        Raises
        ------
        ConfigError, DataError
            The clips are not on this machine; ``messages`` holds no recorded run.
        """
        if self.task.config.data.on_nodes:
            raise DataError(f"{self.folder.path}: the clips are on the nodes, whose audits are in {AUDIT}")
        sent = self.sent(messages)
        require(bool(sent), f"{self.folder.path}: no node sent samples or adapters, so there is nothing to attack")
        report = audit_run(self.task, sent, clips_of(self.task))
        return report, verdict_of(self.task, report)

    @classmethod
    def open(cls, folder: RunFolder, config: Config) -> SavedRun:
        """Reload with the run's configuration, or one with another test fold or device.

        Raises
        ------
        ConfigError, DataError
            The run has no global adapters, or this machine cannot serve its task.
        CheckpointError
            The adapters are missing, damaged, or of another task.
        """
        _refuse_standalone(folder, config)
        return cls.of(folder, prepare_task(config))

    @classmethod
    def of(cls, folder: RunFolder, task: Task) -> SavedRun:
        """Reload the run in ``folder`` with a ``task`` of this machine; errors as `open`."""
        weights, round_number = folder.load_adapters(task.identity())
        adapters = task.adapters()
        adapters.load_state_dict(weights)
        state = folder.state()
        codec = task.space.codec if uses_samples(task.config.phase_list) else None
        pool = pool_from_state(state, codec) if state is not None and "seeds" in state.facts else {}
        return cls(folder, task, adapters.eval(), round_number, pool)


def _refuse_standalone(folder: RunFolder, config: Config) -> None:
    require(
        config.phase_list[0].mode != "standalone",
        f"{folder.path} is a run of mode=standalone: it has no global adapters",
    )


def load_run(path: str | Path, device: str = "auto") -> SavedRun:
    """Open the folder of a run; its clips are not needed.

    Parameters
    ----------
    path : str or Path
        The run's folder.
    device : str
        ``auto``, ``cpu`` or ``cuda``.

    Returns
    -------
    SavedRun
        ``run.classes``, ``run("a.wav")``, ``run.nearest("a.wav")``, ``run.pool``, ``run.samples("dog", 8)``,
        ``run.codec`` and ``run.tokens("a.wav")``.

    Raises
    ------
    FedgenError
        What is wrong, in words that name the folder.
    """
    folder = RunFolder(Path(path))
    config = replace(folder.config(), device=device)
    _refuse_standalone(folder, config)
    store, there = without_clips(folder.classes(), open_encoder(config.encoder)), use_hardware(config)
    return SavedRun.of(folder, Task(config, store, prepare_targets(store.classes, config.target, there), there))


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
    scores = asdict(zero_shot(run.adapters, task.summaries(task.test_indices), task.targets.heads, task.classes))
    same = fold in (None, own.data.test_fold)
    assessment = assess(task, run.sent(), run.pool, results["nodes"], PROBES) if same else None
    measured = {} if assessment is None else {"evaluation": assessment.results}
    folder.save_json("evaluation.json", {"test_fold": config.data.test_fold, **scores, **measured})
    return {**results, **scores}, assessment
