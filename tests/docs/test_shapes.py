"""The tables of shapes in docs/encoders.md, against the code."""

import re
import shlex
from pathlib import Path

import pytest

from fedgen.config.compose import load_config
from fedgen.data.encoders import open_encoder
from fedgen.data.settings import ENCODERS, PRETRAINED, SOURCES, TARGETS, EncoderSettings, TargetSettings
from fedgen.data.targets import open_targets
from fedgen.errors import ConfigError

PAGE = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text(encoding="utf-8")
CONFIGURED = {"ast": ("ASTConfig", "ASTFeatureExtractor"), "clap": ("ClapConfig", "ClapFeatureExtractor")}


def rows(first: str) -> list[list[str]]:
    """The cells of the table whose first column is called ``first``."""
    table = PAGE.split(f"| {first} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in table]


def shapes(cell: str) -> list[tuple[int, ...]]:
    return [tuple(int(number) for number in re.findall(r"\d+", text)) for text in re.findall(r"`(\(.*?\))`", cell)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The usual models without their weights."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("models")
    for name, classes in CONFIGURED.items():
        for part in classes:
            getattr(transformers, part)().save_pretrained(folder / name)
        (folder / name / "model.safetensors").touch()
    return folder


def test_encoders(models: Path) -> None:
    table = rows("encoder")
    assert {cells[0].strip("`").split()[0] for cells in table} == set(ENCODERS)
    for choice, _, tokens, cls, sound in table:
        name, *settings = shlex.split(choice.strip("`"))
        given = {text.split("=")[0].removeprefix("encoder."): int(text.split("=")[1]) for text in settings}
        model = str(models / name) if name in PRETRAINED else None
        encoder = open_encoder(EncoderSettings(name, model=model, **given))
        assert [encoder.shape] == shapes(tokens)
        assert sound.startswith(f"{encoder.sample_rate // 1000} kHz")
        if name in PRETRAINED:
            assert [open_encoder(EncoderSettings(name, model=model, tokens="cls")).shape] == shapes(cls)
        else:
            assert cls == ""


def test_targets() -> None:
    table = rows("target")
    assert {cells[0].strip("`").split()[0] for cells in table} == set(TARGETS)
    for choice, sources, heads in table:
        settings = load_config([f"target={word}" if "=" not in word else word for word in choice.strip("`").split()])
        found = open_targets(["rain"], settings.target).heads
        names = re.findall(r"`(\w+)` `\(", heads)
        assert dict(zip(names, shapes(heads), strict=True)) == {k: tuple(v.shape[1:]) for k, v in found.items()}
        assert re.findall(r"`(\w+)`", sources) == [name for name in SOURCES if possible(settings.target, name)]


def possible(settings: TargetSettings, source: str) -> bool:
    try:
        TargetSettings(settings.name, source)
    except ConfigError:
        return False
    return True


def test_strides() -> None:
    for stride in range(1, 17):
        formula = 2 + (112 // stride + 1) * (1008 // stride + 1)
        assert open_encoder(EncoderSettings(stride=stride)).shape[0] == formula
