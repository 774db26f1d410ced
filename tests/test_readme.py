"""The commands of the README and of the pages of documentation, in their order, on a small data set.

`tests/docs/test_commands.py` sees to it that no command of any page is left out.
"""

import glob
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

from fedgen.cli import main
from fedgen.data.sounds import synthesise

ROOT = Path(__file__).parents[1]
SMALL = [
    "data.clips_per_class=5",
    "data.test_fold=3",
    "encoder.stride=16",
    "adapter.width=16",
    "adapter.hidden=32",
    "adapter.training.epochs=1",
    "generator.width=16",
    "generator.latents=4",
    "generator.training.epochs=2",
    "synthesis.samples_per_class=4",
    "evaluation.quality=false",
    "evaluation.gate=warn",  # of so few clips samples may well leak
    "threads=1",
]  # after what the command says, unless it says otherwise
APART = ("README.md", "generators.md", "privacy.md")  # each command is a test of its own
PAGES = ("quickstart", "choosing", "checkpoints", "evaluation", "reports", "security")
DEMO = r"runs/demo/\w+"  # what `make demo` leaves
ELSEWHERE = ("experiment=", "/srv/", "runs/esc10", "../shared", "tracking=wandb")  # other tests run these
SHORTER = {  # fewer rounds and jobs; five clips a class make three folds
    "rounds=10": "rounds=2",
    "rounds=5": "rounds=2",
    "seed=0,1,2": "seed=0,1",
    "seed=0,1": "seed=0",
    "data.leave_out=[5]": "data.leave_out=[2]",
    "data.test_fold=4": "data.test_fold=1",
    "5": "2",  # of --fold
    "data.test_fold=3,4": "data.test_fold=2,3",
}
FORM = re.compile(r"\b(RUN|FOLDER|RUN_FOLDER|OLD)\b|\.\.\.")  # stands for what the reader puts there
NAME = r"fedgen (?!info)\w+"  # without arguments, in running text
COMMAND = r"fedgen (?:run|prepare|checkpoints|compare|evaluate|forget|report|info)\b"


def commands(page: str) -> list[str]:
    """The commands of a page that this file runs, in order, without comments."""
    text = (ROOT / ("" if page == "README.md" else "docs") / page).read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(rf"(?:`|^)({COMMAND}(?: +[^\s`#][^\s`]*| +'[^'\n]*')*)(?: +#[^\n]*)?(?:`|$)", text, re.MULTILINE)
    found = [command for command in dict.fromkeys(found) if not re.fullmatch(NAME, command)]
    return [command for command in found if not FORM.search(command) and not any(word in command for word in ELSEWHERE)]


SINGLE = [c for c in dict.fromkeys(c for page in APART for c in commands(page)) if "multirun/*" not in c]


def of_page(page: str) -> list[str]:
    """The commands of a page, without those that are tests of their own, unless later ones need what they leave."""
    return [command for command in commands(page) if "runs/" in command or command not in SINGLE]


@pytest.fixture(scope="module")
def folder(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the commands are run, with the run that some of them go on from."""
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("fedgen.report.recorder.draw_run", lambda results, folder: [])
        write_sounds()
        run("fedgen run mode=train_generators hydra.run.dir=runs/run1")
        yield folder


@pytest.fixture
def page_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_plots: None) -> None:
    monkeypatch.chdir(tmp_path)
    write_sounds()


def write_sounds() -> None:
    """The folders that pages call ``path/to/...``: five clips of three classes, in both layouts."""
    lines = ["filename,fold,target,category"]
    for target, name in enumerate(("cow", "rain", "siren")):
        for clip in range(5):
            file = f"{clip + 1}-{name}-{clip}.wav"
            lines.append(f"{file},{clip + 1},{target},{name}")
            for place in (f"ESC-50/audio/{file}", f"folder/{name}/{clip}.wav", f"sounds/{name}/{clip}.wav"):
                (Path("path/to") / place).parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(Path("path/to") / place, synthesise(name, clip, 0)[:16000], 16000)
    Path("path/to/ESC-50/meta").mkdir()
    Path("path/to/ESC-50/meta/esc50.csv").write_text("\n".join(lines) + "\n")


def test_the_pages_have_commands() -> None:
    assert len(SINGLE) >= 19
    assert "fedgen run mode=train_generators hydra.run.dir=runs/run1" in SINGLE
    assert all(of_page(f"{page}.md") for page in PAGES)


@pytest.mark.slow
@pytest.mark.parametrize("command", SINGLE)
def test_the_command_works(command: str, folder: Path) -> None:
    run(command)


@pytest.mark.slow
@pytest.mark.usefixtures("page_folder")
@pytest.mark.parametrize("page", [f"{page}.md" for page in PAGES])
def test_the_commands_of_the_page_work_one_after_the_other(page: str) -> None:
    demo = dict.fromkeys(re.findall(DEMO, " ".join(of_page(page))))
    for command in [*(f"fedgen run hydra.run.dir={folder}" for folder in demo), *of_page(page)]:
        run(command)


def run(command: str) -> None:
    words = [SHORTER.get(word, word) for word in shlex.split(command)[1:]]
    words = [word for text in words for word in (sorted(glob.glob(text)) if "*" in text else [text])]
    if words[0] in ("run", "prepare") and not any(word.startswith("resume=") for word in words):
        given = [word.split("=")[0] for word in words]
        left_out = {"phases": "rounds", "evaluation.probes": "evaluation.quality"}  # what the former asks for
        given += [other for key, other in left_out.items() if key in given]
        words += [text for text in [*SMALL, "rounds=1"] if text.split("=")[0] not in given]
    assert main(words) == 0, f"{command} with {words}"
