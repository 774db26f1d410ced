"""`fedgen render`: pictures of what a run's adapters make of sound, each with a JSON of what made it, and grids."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import torch
from PIL import Image

from fedgen.errors import choose, require
from fedgen.files import write_atomically
from fedgen.models.seeds import seeded
from fedgen.progress import RoundsBar
from fedgen.render.conditioning import Conditioning
from fedgen.render.grid import grid
from fedgen.render.options import UNASKED
from fedgen.render.painter import Manner, Painter, diffusion
from fedgen.render.picture import Picture, folder_name, png, save_json
from fedgen.render.pipelines import KEY, KINDS, PipelineFiles
from fedgen.render.settings import RenderSettings
from fedgen.run_folder import RunFolder
from fedgen.saved_run import SavedRun
from fedgen.settings import Config

logger = logging.getLogger(__name__)


def render(path: Path, settings: RenderSettings) -> list[Path]:
    """Make the pictures that ``settings`` ask for, but for those that are there already, and a grid of each class.

    Parameters
    ----------
    path : Path
        The run's folder.
    settings : RenderSettings

    Returns
    -------
    list[Path]
        The grids.

    Raises
    ------
    ConfigError
        The run, or what is asked for, has no pictures: see `refuse`; or the pipeline does not fit the run.
    DataError
        The pipeline is not on this machine and cannot be fetched, or is damaged.
    """
    folder = RunFolder(path)
    config = folder.config()
    refuse(path, config)
    diffusion()
    run = SavedRun.open(folder, replace(config, device=settings.device))
    labels = _labels(settings.classes, run.task.classes)
    conditioning = Conditioning(run, settings.seed)
    for source in settings.sources or []:
        conditioning.refuse_unless_there(labels, source)
    own = settings.pipeline is None
    files = PipelineFiles(
        config.target.name,
        settings.pipeline or config.target.pipeline,
        settings.revision or (config.target.revision if own else None),
    )
    files.refuse_unless_it_fits(run.task.targets.heads)
    manner = _manner(settings, files, run.task.device)
    pictures = _asked_for(run, conditioning, labels, settings, files, manner)
    _draw(pictures, settings.seed, files, manner)
    return [_grid(label, pictures, run.task.classes[label]) for label in labels]


def refuse(path: Path, config: Config) -> None:
    """Raise `ConfigError` for a run whose adapters aim at nothing that a pipeline takes."""
    target, known = config.target, " or ".join(KINDS)
    require(target.name in KINDS, f"{path} has target={target.name}, which no pipeline takes: run with target={known}")
    require(
        target.source == "clip_t5",
        f"{path} has target.source={target.source}: its adapters aim at vectors of chance, which mean nothing to a "
        "pipeline; run with target.source=clip_t5",
    )


def _labels(names: Sequence[str] | None, classes: list[str]) -> list[int]:
    for name in names or []:
        choose(name, classes, "--class")
    return [classes.index(name) for name in dict.fromkeys(names or classes)]


def _manner(settings: RenderSettings, files: PipelineFiles, device: torch.device) -> Manner:
    """Return the settings, the pipeline's usual ones where none are given; `ConfigError` for what it cannot do."""
    steps, guidance = files.usual
    precision = files.kind.precision if device.type == "cuda" else "float32"
    height, width = settings.size or files.usual_size
    manner = Manner(
        steps=steps if settings.steps is None else settings.steps,
        guidance=guidance if settings.guidance is None else settings.guidance,
        size=(height, width),
        precision=precision if settings.precision == "auto" else settings.precision,
        device=device,
        offload=settings.offload,
    )
    require(
        files.guided or not manner.guidance,
        f"--guidance={manner.guidance:g}: {files.model} was trained without (guidance_embeds), leave it at 0",
    )
    require(
        all(side >= files.step and side % files.step == 0 for side in manner.size),
        f"--size={height} {width}: both must be multiples of {files.step}",
    )
    require(not settings.offload or device.type == "cuda", f"--offload needs a CUDA device, this is {device}")
    return manner


def _asked_for(
    run: SavedRun,
    conditioning: Conditioning,
    labels: list[int],
    settings: RenderSettings,
    files: PipelineFiles,
    manner: Manner,
) -> list[Picture]:
    out = settings.out or run.folder.path / "render"
    shared = {
        "seed": settings.seed,
        "steps": manner.steps,
        "guidance": manner.guidance,
        "size": " x ".join(map(str, manner.size)),
        "pipeline": files.place,
        "revision": files.revision,
        "precision": manner.precision,
        "device": manner.device.type,
        "made by": {"class": files.kind.pipeline, "digest": files.digest(), **_versions()},
        "run": {"folder": str(run.folder.path.absolute()), "round": run.round, "store": str(run.task.store.path)},
    }
    pictures: list[Picture] = []
    lacking: list[str] = []
    for label in labels:
        name = run.task.classes[label]
        for source in dict.fromkeys(settings.sources or UNASKED):
            if not conditioning.has(label, source):
                lacking.append(name)
                continue
            for index in range(settings.count):
                condition = conditioning.of(label, source, index)
                facts = {"class": name, "source": source, "made of": condition.origin, "index": index, **shared}
                facts["embeddings"] = condition.digest()
                file = out / folder_name(name) / f"{source}_{index}.png"
                pictures.append(Picture(file, label, source, index, condition, facts))
    if lacking:
        logger.info("there are no synthetic samples of %s: pictures of their targets alone", ", ".join(lacking))
    return pictures


def _draw(pictures: list[Picture], seed: int, files: PipelineFiles, manner: Manner) -> None:
    missing = [picture for picture in pictures if not picture.noted()]
    logger.info("%d pictures, %d of them are there already", len(pictures), len(pictures) - len(missing))
    if not missing:
        return
    negative = None
    if files.target == "sd" and manner.guidance > 1:
        negative = files.empty_prompt(manner.device)
        shape, own = tuple(negative.shape), tuple(missing[0].condition.heads["clip"].shape)
        require(shape == own, f"{KEY}={files.model} makes {shape} of a prompt, the run's clip is {own}")
    painter = Painter(files, manner, negative)
    bar = RoundsBar(len(missing), "pictures")
    bar.start(0)
    try:
        for done, picture in enumerate(missing, 1):
            noise = seeded(seed, "picture", picture.facts["class"], picture.index)  # one noise a column of the grid
            picture.save(painter.draw(picture.condition.heads, noise))
            logger.info("%s (%d of %d), made of %s", picture.file, done, len(missing), picture.condition.origin)
            bar.show(done)
    finally:
        bar.stop()


def _grid(label: int, pictures: Iterable[Picture], name: str) -> Path:
    own = [picture for picture in pictures if picture.label == label]
    rows: dict[str, list[Image.Image]] = {}
    for picture in own:
        rows.setdefault(picture.source, []).append(picture.opened())
    first = own[0].facts
    facts = {key: first[key] for key in ("class", "seed", "steps", "guidance", "size", "pipeline", "revision")}
    for source in rows:
        facts[source] = ", ".join(dict.fromkeys(p.facts["made of"] for p in own if p.source == source))
    file = own[0].file.with_name("grid.png")
    file.with_suffix(".json").unlink(missing_ok=True)
    write_atomically(file, png(grid(name, rows)))
    save_json(file.with_suffix(".json"), facts)
    return file


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("fedgen", "torch", "diffusers")}
