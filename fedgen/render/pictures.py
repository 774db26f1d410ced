"""`fedgen render`: pictures from the outputs of a run's adapters, each with a JSON of its settings, and grids."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from fedgen.config.settings import Config
from fedgen.data.files import digest, write_atomically
from fedgen.data.progress import RoundsBar
from fedgen.data.seeds import seeded
from fedgen.data.tensors import exact_digest
from fedgen.errors import choose, require
from fedgen.render.conditioning import Conditioning
from fedgen.render.pipelines import KINDS, ImagePipeline, PipelineFiles, diffusion
from fedgen.render.settings import UNASKED, RenderSettings
from fedgen.report.saved_run import SavedRun
from fedgen.runs.folder import RunFolder

MAX_NAME_CHARS = 50  # characters of a class in a folder's name: up to 4 bytes each
SIDE = 256  # pixels of the longer side of a picture in a grid
TITLE = 20  # pixels of a grid's title
ASIDE = ("run",)  # entries of a JSON that may change while the picture stays

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """A requested picture: its file, the embeddings in place of a prompt's by head, and its settings."""

    file: Path
    heads: Mapping[str, Tensor]
    facts: dict[str, Any]

    def exists(self) -> bool:
        """Return whether the file exists and has these settings."""
        try:
            found = dict(json.loads(self.file.with_suffix(".json").read_text(encoding="utf-8")))
            with Image.open(self.file) as there:
                there.verify()
        except (OSError, ValueError, TypeError, SyntaxError):
            return False
        return all(found.get(key) == value for key, value in self.facts.items() if key not in ASIDE)

    def opened(self) -> Image.Image:
        """Return the picture in the size of a grid."""
        with Image.open(self.file) as there:
            picture = there.convert("RGB")
        picture.thumbnail((SIDE, SIDE))
        return picture


def render(path: Path, settings: RenderSettings) -> list[Path]:
    """Make the pictures that ``settings`` ask for, but for those that are there already, and a grid of each class.

    Returns the files of the grids.

    Raises
    ------
    ConfigError
        The run, or what is asked for, has no pictures; or the pipeline does not fit the run.
    DataError
        The pipeline is not on this machine and cannot be fetched, or is damaged.
    """
    folder = RunFolder(path)
    config = folder.config()
    _refuse(path, config)
    diffusion()
    run = SavedRun.open(folder, replace(config, device=settings.device))
    for name in settings.classes or []:
        choose(name, run.task.classes, "--class")
    labels = [run.task.classes.index(name) for name in dict.fromkeys(settings.classes or run.task.classes)]
    conditioning = Conditioning(run, settings.seed)
    for source in settings.sources or []:
        conditioning.refuse_unless_there(labels, source)
    revision = settings.revision or (None if settings.pipeline else config.target.revision)
    files = PipelineFiles(config.target.name, settings.pipeline or config.target.pipeline, revision)
    files.refuse_unless_it_fits(run.task.targets.heads)
    settings = files.completed(settings, run.task.device)
    pictures = _asked_for(conditioning, labels, settings, files)
    missing = [picture for picture in pictures if not picture.exists()]
    logger.info("%d pictures, %d of them are there already", len(pictures), len(pictures) - len(missing))
    if missing:
        _draw(missing, settings.seed, ImagePipeline(files, settings, run.task.device))
    return [_grid(list(own)) for _, own in groupby(pictures, lambda picture: picture.file.parent)]


def _refuse(path: Path, config: Config) -> None:
    target, known = config.target, " or ".join(KINDS)
    require(target.name in KINDS, f"{path} has target={target.name}, which no pipeline takes: run with target={known}")
    require(
        target.source == "clip_t5",
        f"{path} has target.source={target.source}: its adapters aim at vectors of chance, which mean nothing to a "
        "pipeline; run with target.source=clip_t5",
    )


def _asked_for(
    conditioning: Conditioning, labels: list[int], settings: RenderSettings, files: PipelineFiles
) -> list[Picture]:
    run = conditioning.run
    versions = {name: metadata.version(name) for name in ("fedgen", "torch", "diffusers")}
    shared = {
        "seed": settings.seed,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "size": " x ".join(map(str, settings.size)) if settings.size else "usual",
        "pipeline": files.model,
        "revision": files.revision,
        "precision": settings.precision,
        "device": run.task.device.type,
        "made by": {"class": files.kind.pipeline, **versions},
        "run": {"folder": str(run.folder.path.absolute()), "round": run.round, "store": str(run.task.store.path)},
    }
    pictures: list[Picture] = []
    for label in labels:
        name = run.task.classes[label]
        folder = (settings.out or run.folder.path / "render") / folder_name(name)
        for source in dict.fromkeys(settings.sources or UNASKED):
            if not conditioning.has(label, source):
                logger.info("there are no synthetic samples of %s: pictures of its targets alone", name)
                continue
            for index in range(settings.count):
                heads, origin = conditioning.of(label, source, index)
                facts = {"class": name, "source": source, "made of": origin, "index": index, **shared}
                facts["embeddings"] = exact_digest(heads)[:16]
                pictures.append(Picture(folder / f"{source}_{index}.png", heads, facts))
    return pictures


def _draw(pictures: list[Picture], seed: int, pipeline: ImagePipeline) -> None:
    with RoundsBar(len(pictures), "pictures") as bar:
        for done, picture in enumerate(pictures, 1):
            facts = picture.facts
            noise = seeded(seed, "picture", facts["class"], facts["index"])  # one noise a column of the grid
            save(picture.file, pipeline.generate(picture.heads, noise), facts)
            logger.info("%s (%d of %d), made of %s", picture.file, done, len(pictures), facts["made of"])
            bar.show(done)


def _grid(pictures: list[Picture]) -> Path:
    """Save the pictures of one class: a row for each source, whose names are in the title, a column for each number."""
    rows = list(dict.fromkeys(picture.facts["source"] for picture in pictures))
    images = [picture.opened() for picture in pictures]
    sheet = diffusion().utils.make_image_grid(images, len(rows), len(images) // len(rows))
    sheet = ImageOps.expand(sheet, (0, TITLE, 0, 0), "white")
    title = f"{pictures[0].facts['class']}: {', '.join(rows)}"
    ImageDraw.Draw(sheet).text((2, 2), title, "black", ImageFont.load_default(TITLE - 6))
    file = pictures[0].file.with_name("grid.png")
    write_atomically(file, _png(sheet))
    return file


def save(file: Path, picture: Image.Image, facts: dict[str, Any]) -> None:
    """Write a PNG and the JSON beside it so that they never disagree."""
    file.with_suffix(".json").unlink(missing_ok=True)
    write_atomically(file, _png(picture))
    write_atomically(file.with_suffix(".json"), (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def folder_name(name: str) -> str:
    """Return a folder's name for a class, whatever a data set or a node calls it."""
    plain = re.sub(r"[^\w.-]", "_", name).lstrip(".")[:MAX_NAME_CHARS]
    return plain if plain == name else f"{plain}-{digest(name)[:6]}"
