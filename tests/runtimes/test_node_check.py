"""What `fedgen node check` finds: each thing sound, and each thing wrong with the way to mend it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args

from fedgen.cli import main
from fedgen.config.settings import Config
from fedgen.errors import ConfigError
from fedgen.runtimes import node_check
from fedgen.runtimes.node_check import KEYS, check_node, read_node_config
from fedgen.task import Task

Check = Callable[..., list[str]]


@pytest.fixture
def check(task: Task, tmp_path: Path) -> Check:
    """Look at a node whose configuration has a number and a store, and what the test says."""

    def look(text: str = "", config: Config | None = None, **options: object) -> list[str]:
        file = tmp_path / "node.toml"
        store = "" if "store =" in text else f'store = "{task.store.path}"\n'
        file.write_text(("" if "partition-id" in text else "partition-id = 0\n") + store + text)
        return check_node(file, config or task.config, **options)  # type: ignore[arg-type]

    return look


def test_a_sound_node(check: Check, task: Task, tmp_path: Path) -> None:
    found = check(f'state = "{tmp_path}/later/state"\nclasses = "dog, siren"\nmax-epsilon = 8.0', joins=True)
    assert any(line.startswith("12 clips of 2 classes (dog, siren), of encoder") for line in found)
    assert "device=cpu: cpu" in found
    assert not (tmp_path / "later").exists()  # nothing is made


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stat = '/x'", "nothing reads stat. Did you mean 'state'?"),
        ("partition-id = '0'", "partition-id='0' must be a whole number from 0"),
        ("partition-id = -1", "partition-id=-1 must be"),
        ("partition-id = true", "partition-id=True must be"),
        ("classes = ['dog', 'cow']", "class names with commas between them"),
        ("classes = 'dog, cat'", "classes='cat' is not one of dog, cow"),
        ("granularity = 'per_clas'", "Did you mean 'per_class'?"),
        ("groups = '{pets}'", "must be JSON such as"),
        ("samples-per-class = 'many'", "many"),
        ("device = 'gpu'", "gpu"),
        ("max-epsilon = 0", "max-epsilon=0 must be a number above 0"),
        ("max-epsilon = 'eight'", "must be a number above 0"),
        ("secure-aggregation = 2", "at least 3"),
        ("store = '/nowhere'", "/nowhere holds no embedding store: make it with `fedgen prepare`"),
        ("store = 'nowhere'", "store=nowhere must be an absolute path"),
        ("store = 7", "store=7 must be the folder of the node's embeddings"),
        ("state = '/dev/null/state'", "/dev/null cannot be written to"),
        ("state = 'here'", "state=here must be an absolute path"),
        ("partition-id 0", "cannot be read"),
    ],
    ids=lambda value: value if "=" in value else "",
)
def test_a_wrong_configuration(check: Check, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check(text)
    assert words in str(raised.value)


def test_what_is_missing(check: Check, task: Task, tmp_path: Path) -> None:
    file = tmp_path / "empty.toml"
    file.touch()
    with pytest.raises(ConfigError) as raised:
        check_node(file, task.config)
    first, *wrong = str(raised.value).splitlines()
    assert first == "this node is not ready: 2 to mend"
    assert [line.split()[0] for line in wrong] == ["partition-id", "store"]
    assert "store is missing: the folder of the node's embeddings" in wrong[1]
    with pytest.raises(ConfigError, match=r"must end in \.toml"):
        read_node_config(tmp_path / "node.txt")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_node_config(tmp_path / "nowhere.toml")


def test_flower_reads_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text((Path(__file__).parents[2] / "deploy" / "node.toml").read_text().replace("# max", "max"))
    facts = read_node_config(file)
    assert facts == parse_config_args([str(file)])
    assert set(facts) == {"partition-id", "store", "state", "max-epsilon"}


def test_every_entry_that_the_client_reads_is_known() -> None:
    package = Path(node_check.__file__).parents[1]
    source = "".join((package / name).read_text() for name in ("client_app.py", "node/settings.py", "node/secure.py"))
    read = set(re.findall(r'(?:facts|node_config)(?:\.get\(|\[)"([\w-]+)"', source))
    assert {"partition-id", "store", "state", "max-epsilon"} <= read <= set(KEYS)


def test_a_damaged_store_and_another_encoder(
    check: Check, task: Task, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    other = tiny("encoder.stride=8")
    with pytest.raises(ConfigError, match=r"the run's has \{'stride': 8\}"):
        check(config=other, joins=True)
    assert check(config=other)  # which run it is to join is not said
    copy = Path(shutil.copytree(task.store.path, tmp_path / "copy"))
    shard = next(copy.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ConfigError, match="is damaged"):
        check(f'store = "{copy}"')


def test_the_command(task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "node.toml"
    file.write_text(f'partition-id = 0\nstore = "{task.store.path}"\n')
    command = ["node", "check", "--node-config", str(file)]
    assert main(command) == 0
    assert "this node is ready" in capsys.readouterr().out
    assert main([*command, "encoder.stride=8"]) == 1
    assert "this node is not ready: 1 to mend" in capsys.readouterr().err
    assert main([*command, "encoder.strid=8"]) == 1
    assert "Did you mean 'encoder.stride'?" in capsys.readouterr().err


def test_the_script(task: Task, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = Path(__file__).parents[2] / "deploy" / "check-node.sh"
    (tmp_path / "node.toml").write_text(f'partition-id = 0\nstore = "{task.store.path}"\n')
    settings = tmp_path / "node.env"
    words = {"BIN": Path(sys.executable).parent, "NODE_CONFIG": tmp_path / "node.toml"}
    settings.write_text("".join(f"{name}={value}\n" for name, value in words.items()) + "FEDGEN_HOME=/nowhere\n")
    assert subprocess.run([script, settings], timeout=120).returncode == 0
    assert "this node is ready" in capfd.readouterr().out
    assert subprocess.run([script, settings, "encoder.stride=8"], timeout=120).returncode == 1
