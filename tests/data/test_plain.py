"""What others have written is read as plain data: nothing in it is interpolated, expanded, made or completed."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgen.config.compose import from_yaml, load_config, resume_config, to_yaml
from fedgen.config.settings import CheckpointConfig, Config
from fedgen.data.plain import bounded, check_names, read_json, read_yaml
from fedgen.data.settings import DataSettings, TargetSettings
from fedgen.errors import ConfigError, said, visible
from fedgen.models.settings import GranularitySettings
from fedgen.report.record import RunRecord
from fedgen.runs.folder import RunFolder

TEXT = to_yaml(Config())
ODD = [
    *("null", "yes", "on", "~", "1.0", "1e3", "0x10", "010", "1_000", "1:30", "2001-01-01", ".inf", "true", "<<", "="),
    *("a: b", "# x", "- x", "it's", 'say "hi"', "back\\slash", "{{ 7*7 }}", "%x", "&a", "*a", "!!int 3", "[a]", "{}"),
    *("$5", "a,b", "[bold]x[/]", "café", "犬", "x" * 200, "a  b", "?", "|", ">", "@", "`", "...", "---"),
]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_come_back_as_text(name: str) -> None:
    groups = GranularitySettings(groups={name: [name]})
    config = Config(data=DataSettings(classes=[name, "dog"]), granularity=groups)
    assert from_yaml(to_yaml(config)) == config


@given(st.text(st.characters(codec="utf-8"), max_size=40))
@settings(deadline=None, max_examples=60)
def test_any_text_comes_back(text: str) -> None:
    config = Config(target=TargetSettings(template="{}" + text.replace("{}", "")), run_dir=text)
    assert from_yaml(to_yaml(config)) == config


@given(st.floats(allow_nan=False) | st.integers(-(2**63), 2**63))
@settings(deadline=None)
def test_any_number_comes_back(number: float) -> None:
    found = read_yaml(yaml.safe_dump({"x": number}), "here")["x"]
    assert (found, type(found)) == (number, type(number))


def test_one_list_in_two_places_is_no_alias() -> None:
    same = ["dog"]
    config = Config(data=DataSettings(classes=same), granularity=GranularitySettings(groups={"a": same}))
    assert from_yaml(to_yaml(config)) == config


def test_nothing_is_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hush")
    for text in ("${oc.env:SECRET}/{}", "${seed} {}", "${now:%Y} {}", "${oc.decode:'1'} {}"):
        assert from_yaml(TEXT.replace("the sound of {}", text)).target.template == text


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "aliases": (BOMB, "it has anchors or aliases"),
    "aliases in 166 bytes": (BOMB[:166], "it has anchors or aliases"),
    "an anchor": (TEXT.replace("seed: 0", "seed: &a 0"), "it has anchors or aliases"),
    "a merge": (f"{TEXT}<<: {{seed: 3}}\n", "unknown configuration key '<<'"),
    "a merge of an alias": (f"{TEXT}x: &a {{}}\n<<: *a\n", "it has anchors or aliases"),
    "an object": (
        TEXT.replace("seed: 0", "seed: !!python/object/apply:os.getpid []"),
        "it has the tag .*python/object",
    ),
    "a tag of one's own": (TEXT.replace("seed: 0", "seed: !x 0"), "it has the tag !x"),
    "a tag of YAML's": (TEXT.replace("seed: 0", "seed: !!int 0"), "it has the tag .*:int"),
    "a key twice": (f"{TEXT}seed: 1\n", "a key stands twice"),
    "NUL": (f"{TEXT}# \0\n", "is no plain YAML: .*control characters"),
    "a lone surrogate": (f"{TEXT}# \ud800\n", "is no plain YAML: .*surrogates"),
    "depth": (f"{'[' * 100_000}\n", "deeper than 12"),
    "width": (f"[{'[],' * 1_300_000}]\n", "more than 100000 values"),
    "length": (f"{'#' * 5_000_000}\n", "more than 4000000 characters"),
    "digits": (TEXT.replace("\nseed: 0", f"\nseed: 1{'0' * 3_000_000}"), "seed='1000"),
    "sixties": (TEXT.replace("\nseed: 0", f"\nseed: 1{':1' * 1_500_000}"), "seed='1:1"),
    "two documents": (f"{TEXT}---\n{TEXT}", "single document"),
    "a list": ("- 1\n", "no mapping of keys"),
    "a word": ("hello\n", "no mapping of keys"),
    "nothing": ("", "is empty, or cut off"),
    "an empty line": ("\n", "no mapping of keys"),
    "a list as a key": (f"{TEXT}? [a]\n: b\n", "unhashable key"),
    "interpolation where a number stands": (
        TEXT.replace("threads: null", "threads: ${oc.env:X}"),
        r"threads='\$\{oc.env:X\}' must be a whole number",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_refused_at_once(name: str) -> None:
    text, words = HOSTILE[name]
    started = time.process_time()
    with pytest.raises(ConfigError, match=words) as raised:
        from_yaml(text, "FILE")
    assert time.process_time() - started < 3
    told = str(raised.value)
    assert told.startswith("FILE")
    assert told.isprintable()
    assert len(told) < 1000


def test_a_cut_file_is_refused_wherever_it_is_cut() -> None:
    ends = [place + 1 for place, letter in enumerate(TEXT[:-1]) if letter == "\n"]
    for end in [*ends[::3], *ends[-25:], *range(0, len(TEXT), 197), len(TEXT) - 1]:
        with pytest.raises(ConfigError, match=r"cut off|is missing|is no plain YAML|must be a mapping"):
            from_yaml(TEXT[:end])


@pytest.mark.parametrize("key", ["seed", "nodes", "data.seed", "adapter.training.lr", "codec.channels"])
def test_a_missing_key_is_named_with_its_file(key: str, tmp_path: Path) -> None:
    values = dataclasses.asdict(Config())
    inner: Any = values
    *groups, name = key.split(".")
    for group in groups:
        inner = inner[group]
    del inner[name]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError) as raised:
        RunFolder(tmp_path).config()
    assert str(raised.value) == f"{tmp_path}/config.yaml: the key {key} is missing"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("seed: null", "seed=None must be a whole number"),
        ("seed: true", "seed=True must be a whole number"),
        ("seed: [1]", r"seed=\[1\] must be a whole number"),
        ("seed: 1.5", "seed=1.5 must be a whole number"),
    ],
)
def test_types_are_checked(line: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_yaml(TEXT.replace("\nseed: 0", f"\n{line}"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.classes=[dog, null]", r"data\.classes\[1\]=None must be text"),
        ("data.classes=[true]", r"data\.classes\[0\]=True must be text: in quotes"),
        ("data.classes=dog", r"data\.classes='dog' must be a list"),
        ("evaluation.quality=7", r"evaluation\.quality=7 must be true or false"),
        ("adapter.training.lr=fast", r"adapter\.training\.lr='fast' must be a number"),
        ("nodes.0=3", r"nodes\.0=3 must be a mapping"),
        ("run_dir=${oc.env:NOT_THERE}", r"run_dir.*NOT_THERE"),
    ],
)
def test_types_of_overrides(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        load_config([override])
    assert "\n" not in str(raised.value)


def test_overrides_of_the_operator_interpolate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FROM_OUTSIDE", "7")
    config = load_config(["seed=${oc.env:FROM_OUTSIDE}", "run_dir=runs/${seed}"])
    assert (config.seed, config.run_dir) == (7, "runs/7")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    resumed = resume_config([f"resume={tmp_path}", "threads=${oc.env:FROM_OUTSIDE}", "strategy.timeout=5"])
    assert resumed is not None
    assert (resumed.threads, resumed.strategy.timeout, resumed.run_dir) == (7, 5.0, str(tmp_path))


def test_a_resumed_run_does_not_interpolate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET", "hush")
    template = "${oc.env:SECRET} {}"
    (tmp_path / "config.yaml").write_text(to_yaml(Config(target=TargetSettings(template=template))))
    resumed = resume_config([f"resume={tmp_path}"])
    assert resumed is not None
    assert resumed.target.template == template


@pytest.mark.parametrize("name", ["aliases", "an object", "a merge", "NUL", "nothing"])
def test_run_folders_of_others(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(HOSTILE[name][0])
    readers: list[Callable[[], object]] = [
        lambda: resume_config([f"resume={tmp_path}"]),
        RunFolder(tmp_path).config,
        lambda: RunRecord.read(tmp_path),
    ]
    for reader in readers:
        with pytest.raises(ConfigError, match=HOSTILE[name][1]) as raised:
            reader()
        assert str(tmp_path / "config.yaml") in str(raised.value)


def test_a_configuration_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"seed: \xff\n")
    with pytest.raises(ConfigError, match=r"config\.yaml cannot be read: 'utf-8'"):
        RunFolder(tmp_path).config()


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "[]", "\0", "3"])
def test_damaged_json_of_a_run(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(TEXT)
    for name in ("results.json", "metrics.jsonl"):
        (tmp_path / name).write_text(text)
    if text != "[]":  # Python makes an empty mapping of it
        with pytest.raises(ConfigError, match=r"results\.json cannot be read"):
            RunFolder(tmp_path).results()
        with pytest.raises(ConfigError, match=r"results\.json cannot be read"):
            RunRecord.read(tmp_path)
    (tmp_path / "results.json").unlink()
    assert RunFolder(tmp_path).failure() is None
    with pytest.raises(ConfigError, match="not a run folder"):
        RunFolder(tmp_path).results()


def test_json_is_bounded() -> None:
    for text in ("[" * 100_000, " " * 4_000_001, "{", b"\xff"):
        with pytest.raises(ValueError):  # noqa: PT011 (Python's own)
            read_json(text)
    assert read_json('{"a": [1, null]}') == {"a": [1, None]}


GOOD = ["dog", "a b", "犬", "café", "cafe\u0301", "दिन", "x" * 200, *(name for name in ODD if name.strip())]
BAD = {
    "${oc.env:HOME}": r"holds \$\{",
    "a${b": r"holds \$\{",
    "a\nb": r"holds U\+000A",
    "a\x1b[31mb": r"holds U\+001B",
    "a\0b": r"holds U\+0000",
    "a\x7fb": r"holds U\+007F",
    "a\x9bb": r"holds U\+009B",
    "a\u202eb": r"holds U\+202E",
    "a\u2066b": r"holds U\+2066",
    "a\u200bb": r"holds U\+200B",
    "a\ufeffb": r"holds U\+FEFF",
    "a\u2028b": r"holds U\+2028",
    "a\u3164b": r"holds U\+3164",
    "a\ufe0fb": r"holds U\+FE0F",
    "a\U000e0041b": r"holds U\+E0041",
    "a\ud800b": r"holds U\+D800",
    "": "is no text",
    "  ": "is no text",
    "x" * 201: "has more than 200 characters",
}


def test_good_names() -> None:
    check_names(GOOD, "here")


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_bad_names(name: str) -> None:
    makers: list[Callable[[], object]] = [
        lambda: check_names([name], "classes of node 3"),
        lambda: DataSettings(classes=["dog", name]),
        lambda: GranularitySettings(groups={name: ["dog"]}),
        lambda: GranularitySettings(groups={"a": [name]}),
        lambda: CheckpointConfig(base_name=name or " "),
    ]
    for make in makers:
        with pytest.raises(ConfigError, match=BAD[name]) as raised:
            make()
        assert str(raised.value).isprintable()
        assert len(str(raised.value)) < 300


@pytest.mark.parametrize("name", [None, 3, 1.5, True, ["dog"], {}])
def test_names_are_text(name: object) -> None:
    with pytest.raises(ConfigError, match="is no text"):
        check_names([name], "here")


def test_what_others_say_is_one_line() -> None:
    assert said("a\nb\tc\r\n\x1b[31md\u202e\ud800\u2028e\x00") == "a b c \\x1b[31md\\u202e\\ud800 e\\x00"
    assert said("x" * 10_000) == "x" * 500 + " ..."
    assert said("\x1b" * 10_000, 100) == ("\\x1b" * 25) + " ..."
    assert said(ValueError("a\nb")) == "a b"
    assert said("[bold] 犬 'café'") == "[bold] 犬 'café'"
    assert visible("a\nb\x1b") == "a\nb\\x1b"


def test_json_of_others_is_bounded() -> None:
    found = bounded({"a\x1b": ["b\n\u202e", 1.5, None, True, {"c": "x" * 1000}]})
    assert found == {"a\\x1b": ["b \\u202e", 1.5, None, True, {"c": "x" * 500 + " ..."}]}
    assert json.dumps(found).isprintable()
