"""The zero-shot check: which class is a picture nearest to, of all classes of the run, in CLIP's eyes?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional

from fedgen.data.clip_t5 import TOKENIZER
from fedgen.data.pretrained import WEIGHTS, find, load_model, load_part, name_of

KEY = "--check"
PROMPT = "a photo of {}"


def located(model: str) -> Path:
    """Return the folder of a CLIP model, which is fetched if need be; `DataError` if it cannot be."""
    needed = ["config.json", "model*.safetensors", "*processor_config.json", "tokenizer_config.json"]
    return find(model, None, KEY, needed, [*TOKENIZER, *WEIGHTS])


class ImageCheck:
    """Holds a CLIP model and what it makes of the classes' names.

    Parameters
    ----------
    model : str
        A folder, or a name at Hugging Face.
    classes : Sequence[str]
    device : torch.device

    Raises
    ------
    DataError
        The model is not on this machine and cannot be fetched, or is no CLIP.
    """

    def __init__(self, model: str, classes: Sequence[str], device: torch.device) -> None:
        folder = located(model)
        self.name, self.classes, self.device = name_of(model), list(classes), device
        self.processor = load_part("CLIPProcessor", folder, KEY)
        self.model = load_model("CLIPModel", folder, torch.float32, device, KEY)
        prompts = [PROMPT.replace("{}", name.replace("_", " ")) for name in classes]
        given = self.processor(text=prompts, padding=True, truncation=True, return_tensors="pt").to(device)
        with torch.no_grad():
            self.texts = functional.normalize(_pooled(self.model.get_text_features(**given)), dim=1)  # (C, width)

    @torch.no_grad()
    def judge(self, picture: Image.Image) -> dict[str, Any]:
        """Return the nearest class, and the cosine to every class's prompt."""
        given = self.processor(images=picture.convert("RGB"), return_tensors="pt").to(self.device)
        image = functional.normalize(_pooled(self.model.get_image_features(**given)), dim=1)
        cosines = (image @ self.texts.T)[0].cpu()
        similarity = {name: round(float(value), 4) for name, value in zip(self.classes, cosines, strict=True)}
        return {"nearest": self.classes[int(cosines.argmax())], "check": {**self.facts(), "cosine": similarity}}

    def facts(self) -> dict[str, Any]:
        """Return what a judgement depends on beside the picture."""
        return {"model": self.name, "prompt": PROMPT, "classes": self.classes}


def _pooled(found: Any) -> torch.Tensor:
    """Return projected features: newer releases of transformers give them within an output."""
    return found if isinstance(found, torch.Tensor) else found.pooler_output
