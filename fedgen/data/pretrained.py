"""Pretrained models: where their files are, what they are, and how they are loaded. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError

from fedgen.errors import ConfigError, DataError, require

INDEX = "model.safetensors.index.json"
WEIGHTS = ("model.safetensors", INDEX, "model-*-of-*.safetensors")
"""What transformers loads without a variant: one file, or an index and its parts."""
DIFFUSION_WEIGHTS = tuple(f"diffusion_pytorch_{name}" for name in WEIGHTS)
"""The same of diffusers."""

log = logging.getLogger(__name__)


def library() -> ModuleType:
    """Return ``transformers``, which only pretrained models need; `ConfigError` where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"encoder=ast, encoder=clap, target.source=clip_t5 and pictures need transformers ({error}): "
            "pip install 'fedgen[encoders]'"
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    module: ModuleType = transformers
    return module


def find(
    model: str,
    revision: str | None,
    key: str,
    needed: Sequence[str],
    fetched: Sequence[str],
    advised: Sequence[str] | None = None,
) -> Path:
    """Return the folder with a model's files: ``model`` itself, or where Hugging Face's library keeps them.

    Files of a name at Hugging Face are fetched if they are not there yet, or not all of them.

    Parameters
    ----------
    model : str
        A folder, or ``ORGANISATION/NAME`` at Hugging Face.
    revision : str, optional
        Branch, tag or commit there.
    key : str
        The configuration's key of ``model``, or the command's option, for errors.
    needed : Sequence[str]
        Patterns of which each must be there, such as ``config.json`` and ``text_encoder/model*.safetensors``; and all
        parts of weights that an index names.
    fetched : Sequence[str]
        Patterns of what is fetched.
    advised : Sequence[str], optional
        Patterns that an error says to fetch, where more than ``fetched`` will be needed in the end.

    Raises
    ------
    ConfigError
        A folder with a revision.
    DataError
        Files are missing, or cannot be fetched: it says which, and where they belong.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        own = "--revision" if key.startswith("--") else f"{key.rpartition('.')[0]}.revision"
        require(revision is None, f"{own}={revision}: {key}={model} is a folder, which has no revisions; leave it out")
        return _complete(folder, model, key, needed)
    if not at_hub(model):
        remedy = _remedy(key, advised or fetched)
        raise DataError(f"{key}={model} is neither a folder here nor a name ORGANISATION/NAME: {remedy}")
    return _from_hub(model, revision, key, needed, list(fetched), advised or fetched)


def at_hub(model: str) -> bool:
    """Return whether ``model`` is a name at Hugging Face, and no folder here."""
    named = not model.startswith(("/", ".", "~")) and model.count("/") == 1
    return named and not Path(model).expanduser().is_dir()


def _from_hub(
    model: str, revision: str | None, key: str, needed: Sequence[str], patterns: list[str], advised: Sequence[str]
) -> Path:
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise ConfigError(f"{key}={model} needs huggingface_hub: pip install 'fedgen[encoders]'") from error
    try:
        there = hub.snapshot_download(model, revision=revision, allow_patterns=patterns, local_files_only=True)
        return _complete(Path(there), model, key, needed)
    except Exception:  # not here, or not all of it; the hub's errors have no base of their own
        log.info("fetching %s from Hugging Face, once", model)
    try:
        there = hub.snapshot_download(model, revision=revision, allow_patterns=patterns)
    except Exception as error:
        raise DataError(
            f"{key}={model} is not on this machine and cannot be fetched ({first_line(error)}). "
            f"{_remedy(key, advised, model)}"
        ) from error
    return _complete(Path(there), model, key, needed)


def _complete(folder: Path, model: str, key: str, needed: Sequence[str]) -> Path:
    missing = [pattern for pattern in needed if not any(folder.glob(pattern))]
    missing += [name for pattern in needed for name in _missing_weights(folder, pattern)]
    if missing:
        pickles = sorted(file.name for part in ("*.bin", "*/*.bin") for file in folder.glob(part))
        note = (
            f" {', '.join(pickles)} is not read, since loading it can execute code: where you trust it, load it with "
            "transformers and write it with save_pretrained, which makes safetensors"
            if pickles and any("safetensors" in pattern for pattern in missing)
            else " Weights are read from safetensors alone, never from pickled files (.bin)"
        )
        raise DataError(f"{key}={model}: {folder} has no {', '.join(missing)}.{note}")
    return folder


def _missing_weights(folder: Path, pattern: str) -> list[str]:
    """Return what is not there of weights of which ``pattern`` finds some, as after an interrupted copy."""
    if not pattern.endswith("*.safetensors") or not any(folder.glob(pattern)):
        return []
    whole = folder / pattern.replace("*", "")
    index = whole.with_name(f"{whole.name}.index.json")
    if index.is_file():
        wanted = _parts(index)
    elif any(folder.glob(pattern.replace("*", "-*-of-*"))) and not whole.is_file():
        wanted = [index]
    else:
        wanted = [whole]  # a variant, such as model.fp16.safetensors, is not it
    return [str(file.relative_to(folder)) for file in wanted if not file.is_file()]


def _parts(index: Path) -> list[Path]:
    """Return the files of weights that an index names, in order; `DataError` if it is no index."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return sorted(index.with_name(name) for name in names)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index} is no index of weights ({first_line(error)}): fetch it again") from error


def _remedy(key: str, needed: Sequence[str], model: str = "ORGANISATION/NAME") -> str:
    include = " ".join(f"--include '{pattern}'" for pattern in needed)
    name = model.rpartition("/")[2]
    return (
        f"On a machine with a network: hf download {model} {include} --local-dir {name}; then copy the folder {name} "
        f"to this machine and set {key}=PATH/{name}"
    )


def weights(folder: Path) -> list[Path]:
    """Return the files of weights in ``folder``, in order."""
    return sorted({file for pattern in WEIGHTS for file in folder.glob(pattern)})


def digest(files: Sequence[Path]) -> str:
    """Return what the bytes of ``files`` amount to, 16 hexadecimal digits, wherever the files are."""
    whole = hashlib.sha256()
    for file in sorted(files):
        status = file.stat()
        whole.update(f"{file.name} {_checksum(file, status.st_size, status.st_mtime_ns)}\n".encode())
    return whole.hexdigest()[:16]


@lru_cache(maxsize=64)  # a file is read again if it changes
def _checksum(file: Path, size: int, changed: int) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def load_model(class_name: str, folder: Path, dtype: torch.dtype, device: torch.device | str, key: str) -> Any:
    """Return a frozen model of ``transformers``.

    Raises
    ------
    DataError
        The folder holds another model, or not all of its weights: what is missing would be random.
    ConfigError
        It does not fit on the device.
    """
    model = load_weights(getattr(library(), class_name), folder, key, dtype=dtype)
    try:
        return model.to(device)
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"{key}: {class_name} does not fit on {device}; try device=cpu") from error


def load_weights(model_class: Any, folder: Path, key: str, **options: Any) -> Any:
    """Return a frozen model on the CPU, by ``from_pretrained`` of its class in ``transformers`` or ``diffusers``.

    Raises
    ------
    DataError
        As `load_model`.
    """
    name = model_class.__name__
    try:
        model, found = model_class.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(f"{key}: {name} cannot be loaded from {folder} ({first_line(error)})") from error
    lost = sorted([*found["missing_keys"], *map(str, found["mismatched_keys"])])
    if lost:
        raise DataError(f"{key}: {folder} is no {name}: it has no weights {', '.join(lost[:3])} ({len(lost)})")
    return model.eval().requires_grad_(False)


def load_part(class_name: str, folder: Path, key: str) -> Any:
    """Return a configuration, tokenizer or feature extractor of ``transformers``; `DataError` if it is none."""
    try:
        return getattr(library(), class_name).from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{key}: {class_name} cannot be loaded from {folder} ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def name_of(model: str) -> str:
    """Return a model's own name: the last part of a path or of a name at Hugging Face.

    In the library's cache a model's folder is ``models--ORGANISATION--NAME/snapshots/COMMIT``.
    """
    path = Path(model).expanduser()
    if path.parent.name == "snapshots":
        return path.parent.parent.name.rpartition("--")[2]
    return path.name
