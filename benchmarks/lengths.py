"""What shorter sequences save and lose: every length and way of up-sampling, in the public codec.

For each: numbers in the codec, parameters of the default VAE on its latents, CPU seconds to fit the codec and for one
epoch of that VAE, bytes of a sample in a message, and what of held-out clips is lost: the squared error of clips that
were encoded and decoded (without noise), as a share of their squared distance to the mean training clip. 1 is what
that mean clip alone would lose. The baseline is the first row, the encoder's own length.

    python benchmarks/lengths.py                                    # synthesised sounds, 514 tokens: three minutes
    python benchmarks/lengths.py --data ../ESC-50 encoder.stride=10  # real audio, 1214 tokens: eight

Every fit is repeated in turn with all others, and the fastest counts; CPU time, so that a busy machine tells the same.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from figures import parser, save, show
from torch import Tensor

from fedgen.config.compose import load_config
from fedgen.data.encoders import open_encoder
from fedgen.data.public import open_public
from fedgen.data.tokens import TokenSource, batches
from fedgen.models.codec import Codec
from fedgen.models.generators.base import Part
from fedgen.models.generators.vae import VAEGenerator
from fedgen.models.settings import UPSAMPLING, CodecSettings, GeneratorSettings
from fedgen.task import prepare_task

LENGTHS = (4, 16, 64)
COLUMNS = {
    "training_length": "tokens",
    "upsampling": "up-sampling",
    "lost": "lost",
    "bytes": "bytes a sample",
    "codec_numbers": "codec, M",
    "vae_parameters": "VAE, M",
    "fit_seconds": "fit codec, CPU s",
    "epoch_seconds": "VAE epoch, CPU s",
}


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse(words)
    logging.getLogger("fedgen").setLevel(logging.ERROR)  # the factors are in the table
    data = ["data=esc50", f"data.root={arguments.data}"] if arguments.data else []
    config = load_config(["encoder.stride=16", "device=cpu", *data, *arguments.overrides])
    task = prepare_task(config)
    train = task.tokens(task.store.train_indices(config.data.test_fold))
    public = open_public(open_encoder(config.encoder), config.codec.public)
    rows = [Row(settings, config.codec) for settings in variants(config.generator)]
    for _ in range(arguments.repeats):
        for row in rows:
            row.fit(public, train)
    test, mean = task.tokens(task.test_indices), mean_clip(train)
    results = [row.result(test, mean) for row in rows]
    cells = [[written(name, row[name], train.shape[0]) for name in COLUMNS] for row in results]
    show(f"{len(train)} clips of {train.shape[0]} x {train.shape[1]}", list(COLUMNS.values()), cells)
    save(arguments, results, clips=len(train), shape=train.shape)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, "lengths")
    made.add_argument("--data", help="folder in the ESC-50 layout; the synthesised sounds by default")
    made.add_argument("--repeats", type=int, default=2)
    made.add_argument("overrides", nargs="*", help="further overrides, such as encoder.stride=10")
    return made.parse_args(words)


def variants(settings: GeneratorSettings) -> Iterator[GeneratorSettings]:
    """Yield the encoder's own length, then each length with each way of up-sampling."""
    training = replace(settings.training, epochs=1)
    settings = replace(settings, kind="vae", output_length=None, training=training)
    yield replace(settings, training_length=None)
    for length in LENGTHS:
        for way in UPSAMPLING:
            yield replace(settings, training_length=length, upsampling=way)


class Row:
    """One variant: its fastest fits, and the codec of the last."""

    def __init__(self, settings: GeneratorSettings, codec: CodecSettings) -> None:
        self.settings, self.sizes = settings, codec
        self.fit_seconds = self.epoch_seconds = float("inf")

    def fit(self, public: TokenSource, train: TokenSource) -> None:
        started = time.process_time()
        self.codec = Codec.fit(public, self.sizes, self.settings.lengths)[0]
        self.fit_seconds = min(self.fit_seconds, time.process_time() - started)
        if self.settings.upsampling != "linear":
            return  # the latents, and so the VAE, are the same for every way of up-sampling
        latents = self.codec.encode_all(train)
        started = time.process_time()
        VAEGenerator(self.settings, self.codec.size).fit(Part(latents, train.labels, seed=0))
        self.epoch_seconds = min(self.epoch_seconds, time.process_time() - started)

    def result(self, test: TokenSource, mean: Tensor) -> dict[str, Any]:
        network = VAEGenerator(self.settings, self.codec.size).build()
        timed = self.settings.upsampling == "linear"
        return {
            "training_length": self.settings.training_length,
            "upsampling": self.settings.upsampling if self.settings.training_length else None,
            "lost": lost(self.codec, test, mean),
            "bytes": self.codec.size,
            "codec_numbers": sum(value.numel() for value in self.codec.state().values()),
            "vae_parameters": sum(value.numel() for value in network.parameters()),
            "fit_seconds": self.fit_seconds,
            "epoch_seconds": self.epoch_seconds if timed else None,
        }


def mean_clip(source: TokenSource) -> Tensor:
    """Return the mean sequence ``(S, D)``."""
    return torch.stack([tokens.sum(dim=0) for tokens in batches(source, 64)]).sum(dim=0) / len(source)


def lost(codec: Codec, source: TokenSource, mean: Tensor) -> float:
    """Return the squared error of decoded clips as a share of the squared distance to the mean training clip."""
    errors, distances = 0.0, 0.0
    for tokens in batches(source, 64):
        errors += float((tokens - codec.decode(codec.encode(tokens))).square().sum())
        distances += float((tokens - mean).square().sum())
    return errors / distances


def written(name: str, value: Any, length: int) -> str:
    if value is None:
        return str(length) if name == "training_length" else ""
    if name in ("codec_numbers", "vae_parameters"):
        return f"{value / 1e6:.2f}"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
