"""Conditions of pictures: adapter outputs for synthetic samples and real clips, and targets of classes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from fedgen.data.seeds import seeded
from fedgen.errors import require
from fedgen.report.saved_run import SavedRun


class Conditioning:
    """The condition of each picture of a run; ``seed`` decides the order of clips and samples."""

    def __init__(self, run: SavedRun, seed: int = 0) -> None:
        self.run, self.seed = run, seed

    @cached_property
    def clips(self) -> list[list[int]]:
        """Held-out clips of each class, as indices of this machine's store."""
        task = self.run.task
        if not len(task.store):
            return [[] for _ in task.classes]
        held_out = task.store.test_indices(task.config.data.test_fold).tolist()
        return [[clip for clip in held_out if task.store.labels[clip] == label] for label in range(len(task.classes))]

    @cached_property
    def samples(self) -> list[list[tuple[int, int]]]:
        """The last synthetic samples of each class, as a node's number and the sample's among that node's."""
        found: list[list[tuple[int, int]]] = [[] for _ in self.run.task.classes]
        for node, samples in sorted(self.run.pool.items()):
            for number, label in enumerate(samples.labels.tolist()):
                found[label].append((node, number))
        return found

    def has(self, label: int, source: str) -> bool:
        """Return whether a source has anything of a class."""
        return source == "text" or bool((self.clips if source == "real" else self.samples)[label])

    def refuse_unless_there(self, labels: list[int], source: str) -> None:
        """Raise `ConfigError` unless every class of ``labels`` has that source."""
        lacking = ", ".join(self.run.task.classes[label] for label in labels if not self.has(label, source))
        what = {"real": "held-out clips on this machine", "synthetic": "synthetic samples"}.get(source)
        require(not lacking, f"--from={source}: {self.run.folder.path} has no {what} of {lacking}")

    def of(self, label: int, source: str, index: int) -> tuple[Mapping[str, Tensor], str]:
        """Return the condition of one picture, the same whatever else is asked for, and what it is made of.

        The condition is ``{head: (width,) or (tokens, width)}``, float32, on the CPU. Clips and samples
        come in an order of chance; where there are fewer than pictures, they come again.
        """
        task = self.run.task
        if source == "text":
            prompt = task.config.target.prompts([task.classes[label]])[0]
            return {head: value[label] for head, value in task.targets.heads.items()}, f"prompt {prompt!r}"
        if source == "real":
            clip = self.clips[label][self._chosen(len(self.clips[label]), label, source, index)]
            return self._adapted(task.store.tokens([clip])), f"clip {task.store.names[clip]}"
        node, number = self.samples[label][self._chosen(len(self.samples[label]), label, source, index)]
        samples = self.run.pool[node]
        noise = seeded(samples.seed, "render", node, number)
        latents = samples.latents_at(torch.tensor([number]))
        return self._adapted(samples.codec.decode(latents, noise)), f"sample {number} of node {node}"

    def _chosen(self, count: int, label: int, source: str, index: int) -> int:
        order = torch.randperm(count, generator=seeded(self.seed, "chosen", self.run.task.classes[label], source))
        return int(order[index % count])

    @torch.no_grad()
    def _adapted(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return the adapters' outputs for one sequence ``(1, S, D)``."""
        outputs = self.run.adapters(tokens.to(self.run.task.device, torch.float32))
        return {head: value[0].float().cpu() for head, value in outputs.items()}
