"""What the tests of pictures ask for, and how they look at what was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedgen.render.settings import RenderSettings

T5_TOKENS = 24
SMALL = {"device": "cpu", "count": 1}
SIZE = [16, 32]
STEPS = {"flux": 2, "sd": 3}


def asked(target: str, **more: Any) -> RenderSettings:
    usual = {"classes": ["dog", "rain"], "size": SIZE, "steps": STEPS[target], **SMALL}
    return RenderSettings(**{**usual, **more})


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


def facts(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.with_suffix(".json").read_text(encoding="utf-8")))
