"""Pretrained models: their files, digests and loading. Nothing is ever unpickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from fedgen.data.files import digest
from fedgen.data.settings import name_of
from fedgen.errors import ConfigError, DataError, require, said

WEIGHTS = "model[.-][s0]*"  # model.safetensors, or its parts and their index; no variant such as model.fp16...
REVISION, USUAL_REVISION = "revision", "main"


def library() -> Any:
    """Return ``transformers``, which only pretrained models need; `ConfigError` if it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"encoder=ast, encoder=clap, target.source=clip_t5 and pictures need transformers ({error}): "
            "pip install 'fedgen[encoders]'"
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def find(
    model: str, revision: str | None, key: str, files: Sequence[str], advised: Sequence[str] | None = None
) -> Path:
    """Return the folder with a model's files: ``model`` itself, or the library's cache of a name at Hugging Face.

    Each pattern of ``files`` must match. Files that Hugging Face's cache lacks are fetched. ``key`` is the
    configuration's key of ``model`` or the command's option; an error says to fetch ``advised``, or else ``files``.

    Raises
    ------
    ConfigError
        A folder with a revision.
    DataError
        Files are missing and cannot be fetched: the message holds the command that fetches them elsewhere.
    """
    source, name = (model, name_of(model)) if at_hub(model) else ("ORGANISATION/NAME", "NAME")
    include = " ".join(f"--include '{pattern}'" for pattern in advised or files)
    hint = (
        f"On a machine with a network: hf download {source} {include} --local-dir {name}; then copy the folder {name} "
        f"to this machine and set {key}=PATH/{name}"
    )
    folder = Path(model).expanduser()
    if folder.is_dir():
        own = "--revision" if key.startswith("--") else f"{key.rpartition('.')[0]}.revision"
        require(revision is None, f"{own}={revision}: {key}={model} is a folder, which has no revisions; leave it out")
    else:
        library()  # brings huggingface_hub
        try:
            folder = _fetched(model, revision, list(files))
        except Exception as error:  # the hub's errors have no base of their own
            raise DataError(f"{key}={model} is no folder here and cannot be fetched ({said(error)}). {hint}") from error
    if missing := _missing(folder, files):
        raise DataError(
            f"{key}={model}: {folder} has no {', '.join(missing)}. Weights are read from safetensors alone, never from "
            f"pickled files (.bin). {hint}"
        )
    return folder


def cached(model: str, files: Sequence[str], revision: str | None = None) -> Path | None:
    """Return the folder of a model in Hugging Face's cache; None where not all ``files`` are there."""
    import huggingface_hub as hub

    with suppress(Exception):  # not in the cache, or not all of it
        there = hub.snapshot_download(model, revision=revision, allow_patterns=list(files), local_files_only=True)
        if not _missing(Path(there), files):
            return Path(there)
    return None


def _fetched(model: str, revision: str | None, files: list[str]) -> Path:
    import huggingface_hub as hub

    there = cached(model, files, revision)
    return there or Path(hub.snapshot_download(model, revision=revision, allow_patterns=files))


def _missing(folder: Path, files: Sequence[str]) -> list[str]:
    return [pattern for pattern in files if not any(folder.glob(pattern))]


def at_hub(model: str) -> bool:
    """Return whether ``model`` is a name at Hugging Face, and no folder here."""
    return model.count("/") == 1 and not model.startswith(("/", ".", "~")) and not Path(model).is_dir()


def digest_of(files: Sequence[Path]) -> str:
    """Return a digest of the names and contents of ``files``, 16 hexadecimal digits, independent of their folder."""
    status = [(file, file.stat()) for file in sorted(files)]
    lines = [f"{file.name} {_checksum(file, found.st_size, found.st_mtime_ns)}\n" for file, found in status]
    return digest("".join(lines))[:16]


@lru_cache(maxsize=64)  # a file is read again if it changes
def _checksum(file: Path, size: int, changed: int) -> str:
    return digest(file)


def load_model(model_class: Any, folder: Path, dtype: torch.dtype, device: torch.device | str, key: str) -> Any:
    """Return a frozen model by ``from_pretrained`` of its class, or of the class of that name in ``transformers``.

    Raises
    ------
    DataError
        The folder holds another model, or not all of its weights, which would be random.
    ConfigError
        It does not fit on the device.
    """
    loader = getattr(library(), model_class) if isinstance(model_class, str) else model_class
    name, options = loader.__name__, {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    try:
        model, found = loader.from_pretrained(folder, dtype=dtype, **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(f"{key}: {name} cannot be loaded from {folder} ({said(error)})") from error
    lost = sorted([*found["missing_keys"], *map(str, found["mismatched_keys"])])
    if lost:
        raise DataError(f"{key}: {folder} is no {name}: it has no weights {', '.join(lost[:3])} ({len(lost)})")
    try:
        return model.eval().requires_grad_(False).to(device)
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"{key}: {name} does not fit on {device}; try device=cpu") from error


def load_part(class_name: str, folder: Path, key: str) -> Any:
    """Return a configuration, tokenizer or feature extractor of ``transformers``; `DataError` if it is none."""
    try:
        return getattr(library(), class_name).from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{key}: {class_name} cannot be loaded from {folder} ({said(error)})") from error


def content(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an encoder's identity that decides the tokens: all but the revision."""
    return {key: value for key, value in identity.items() if key != REVISION}
