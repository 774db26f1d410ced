"""Every command of every page is run by a test, marked as a download or for a GPU, or listed with a reason."""

import re
from pathlib import Path

import pytest
from test_readme import APART, FORM, PAGES, commands

ROOT = Path(__file__).parents[2]
TOOLS = "fedgen|flwr|make|python|hf"
NAME = re.compile(r"\w+ (?:(?:node|supernode) \w+|\w+)")  # in running text, without arguments
OWN_TESTS = {  # pages whose commands a test of their own runs, or composes where a download would be needed
    "deployment.md": "tests/whole/test_deployment.py",
    "encoders.md": "tests/data/test_prepare_models.py",
    "extending.md": "tests/docs/test_extending.py",
    "migrating.md": "tests/config/migrate/test_migrate_command.py",
    "rendering.md": "tests/render/test_rendering_page.py",
}
LISTED = {  # by regular expression: which test does the same
    r"make (demo|test|install|docs)": ".ci/run, tests/whole, tests/docs/test_site.py",
    r"(make simulation|fedgen simulate|flwr run|flwr list).*": "tests/runtimes/",
    r"python benchmarks/\w+\.py.*": "tests/benchmarks",
    r"fedgen run .*\bexperiment=.*|fedgen compare runs/esc10.*": "tests/whole, tests/runtimes",
    r"fedgen run tracking=wandb .*": "tests/report/test_trackers.py",
    r"fedgen migrate .*": "tests/config/migrate/test_migrate_command.py",
    r"fedgen (submit|node check|prepare data=folder data.root=/srv/sounds) .*": "tests/whole/test_deployment.py",
    r"fedgen get sfx": "tests/data/test_sfx.py",
    r"fedgen render .*": "tests/render/test_rendering_page.py",
    r'python -c "': "test_what_epsilon_means",
}


def found() -> list[tuple[str, str]]:
    """Page and command, of all blocks, and of code in the text that has arguments."""
    pairs = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        blocks = re.findall(r"^```(?:console|sh)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        lines = [line for block in blocks for line in block.splitlines()]
        rest = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        inline = re.findall(r"`([^`\n]+)`", re.sub(r"^\| \*.*? \|", "", rest, flags=re.MULTILINE))  # no quoted messages
        pairs += [(page.name, m[1]) for line in lines if (m := re.match(rf"(?:[$#] )?((?:{TOOLS}) .*)", line))]
        pairs += [(page.name, code) for code in inline if re.match(rf"(?:{TOOLS}) ", code) and not NAME.fullmatch(code)]
    return list(dict.fromkeys(pairs))


RUN = {command for page in (*APART, *(f"{page}.md" for page in PAGES)) for command in commands(page)}


@pytest.mark.parametrize(("page", "command"), found())
def test_the_command_is_tested_or_says_why_not(page: str, command: str) -> None:
    plain = re.split(r" +# ", command)[0].strip()
    marked = re.search(r"# .*\b(download|GPU)\b", command) or plain.startswith("hf ")
    listed = any(re.fullmatch(pattern, plain) for pattern in LISTED)
    assert plain in RUN or marked or listed or page in OWN_TESTS or FORM.search(plain), plain


def test_the_tests_that_are_named_are_there() -> None:
    for page, test in OWN_TESTS.items():
        assert page in (ROOT / test).read_text(encoding="utf-8")
    for reason in LISTED.values():
        assert all((ROOT / name).exists() for name in re.findall(r"(?:tests|\.ci)/[\w/.]+", reason))


@pytest.mark.parametrize("name", sorted({c.split()[1] for _, c in found() if c.startswith("python benchmarks/")}))
def test_the_benchmark_is_there(name: str) -> None:
    assert (ROOT / name).is_file()


def test_what_epsilon_means(capsys: pytest.CaptureFixture[str]) -> None:
    """The Python of docs/privacy.md prints what the page says."""
    pytest.importorskip("dp_accounting")
    page = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
    code = re.search(r'^python -c "\n(.*?)"\n```', page, re.DOTALL | re.MULTILINE)
    assert code is not None
    exec(compile(code[1], "privacy.md", "exec"), {})
    assert capsys.readouterr().out in page
