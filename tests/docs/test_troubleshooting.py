"""docs/troubleshooting.md against the code: every message is on the page, and those on the page are in the code.

A message is the text of an error, a warning, or of a reason that ends up in one, with `…` for what varies.
"""

import ast
import builtins
import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path

from fedgen import errors

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ANY = "…"
RAISED = {name for scope in (errors, builtins) for name in vars(scope) if name.endswith(("Error", "Exception"))}
LOST = ("lose", "_lose", "_error")  # what notes why a node is missing
REASONS = {  # functions whose texts become parts of messages
    "assessment": ["_audited"],
    "audit/gate": ["judge", "_leaks"],
    "border": ["differences"],
    "exchange/agreement": ["differ", "_surplus"],
    "exchange/files": ["not_tensors"],
    "exchange/parts": ["_fault", "_differences"],
    "limits": ["excessive"],
    "node_check": ["read_node_config"],
    "plain": ["_fault"],
    "remote": ["assessment"],
    "sweeps": ["summary"],
}
CARRIERS = {  # functions with a message in which nothing is always the same: all its words come from elsewhere
    "border._facts",
    "cli.compare_command",
    "cli.evaluate_command",
    "border.read_classes",
    "config._resolved",
    "config.explain",
    "config.from_yaml",
    "errors.require",
    "exchange/loading._read",
    "exchange/loading.load_bank",
    "exchange/parts.read_part",
    "exchange_round.collect",
    "meeting.classes",
    "migrate/translate._take",
    "migrate/translate.validate",
    "remote._ask",
    "round_grid._pull",
    "run_folder.load_adapters",
    "run_folder.run_folders",
    "secure_aggregation/round._exchange",
    "sweeps.failures",
    "sweeps.objective",
}
NOT_THERE = {  # messages that no user meets, by the reason
    "they only carry words of other messages": [
        "checkpoint … in …: …",
        "node … has …",
        "refused: …",
        "refused: …: …",
        "… is …",
        "… is left out: …",
    ],
    "its halves never come together": ["optimizer.… is missing, expected nothing"],
    "Python's own, for a name that the package does not have": ["module 'fedgen' has no attribute …"],
    "the configuration gives `LocalGrid` its nodes, and our apps reply: only code around it can be wrong": [
        "num_nodes=…: a federation needs at least 1 node",
        "… node_configs for num_nodes=…",
        "run must be an instance of flwr's Run, not …",
        "no node …; the nodes are …",
        "node … took … s: its reply came after … s",
        "the reply of the ClientApp answers another message",
        "…: …=… is of type …; Flower takes bool, float, int and str",
        "the ClientApp returned …, not a Message",
        "Flower refuses the … message: …",
    ],
    "an audit is made of its own candidates, and shadows are fitted to latents": [
        "audit: … has … rows for … candidates",
        "a likelihood ratio against shadow fits needs release.draw",
        "shadow generators are fitted to latents alone",
    ],
    "data without clips to train or test on are refused before": [
        "zero-shot accuracy needs at least one held-out clip",
        "a codec needs at least 1 clip, got none",
        "a private release needs at least 1 clip, got none",
    ],
    "banks are fitted or loaded before they are saved, sampled or shared; a checkpoint that lacks a class is refused": [
        "node … has no fitted generators to save",
        "metadata of node … has no round, a whole number: …",
        "no density for class …; fitted classes: …",
        "the generator is not fitted",
        "the generator has no shared statistics to settle on",
        "no shared state for …; there is one for …",
        "no generator for …; this node has generators for …",
        "no generator for class id …; this node has generators for …",
        "no generator for …; this node has generators for no class",
        "no generator for class id …; this node has generators for no class",
        "a mean needs a positive weight for each of … states, got …",
    ],
    "every target has conditions for every class": [
        "generator.kind=… needs conditions for each class, got none",
        "generator.kind=… needs a condition for each of … classes, got …",
    ],
    "shapes follow from one configuration, and are compared before": [
        "pooled token sources need one shape (S, D), got …",
        "head '…' gives … where its target is …",
    ],
}


def name_of(node: ast.AST) -> str:
    return str(getattr(node, "id", getattr(node, "attr", "")))


def constants(tree: ast.Module) -> dict[str, list[ast.expr]]:
    """The texts that a module gives a name."""
    named = (item for item in tree.body if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant))
    return {name_of(item.targets[0]): [item.value] for item in named}


TREES = {
    path.relative_to(ROOT / "fedgen").with_suffix("").as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "fedgen").rglob("*.py"))
}
CONSTANTS = {module: constants(tree) for module, tree in TREES.items()}


def known(module: str) -> dict[str, list[ast.expr]]:
    """Texts by name, a module's own and those that it imports."""
    found = dict(CONSTANTS[module])
    for item in TREES[module].body:
        if isinstance(item, ast.ImportFrom) and (item.module or "").startswith("fedgen."):
            source = CONSTANTS.get(str(item.module).removeprefix("fedgen.").replace(".", "/"), {})
            found |= {alias.name: source[alias.name] for alias in item.names if alias.name in source}
    return found


def locals_of(function: ast.AST) -> dict[str, list[ast.expr]]:
    """What is assigned to each name in a function."""
    found: dict[str, list[ast.expr]] = {}
    for item in ast.walk(function):
        for target in item.targets if isinstance(item, ast.Assign) else []:
            pairs = [(target, item.value)]
            if isinstance(target, ast.Tuple):
                pairs = list(zip(target.elts, getattr(pairs[0][1], "elts", []), strict=False))
            for one, value in pairs:
                found.setdefault(name_of(one), []).append(value)
    return found


def texts(value: ast.expr, names: Mapping[str, list[ast.expr]], depth: int = 0) -> list[str]:
    """Every text that an expression may be, with `…` for what is not known here."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return [value.value]
    if isinstance(value, ast.FormattedValue):
        return [ANY] if isinstance(value.value, ast.BoolOp) else texts(value.value, names, depth)
    if isinstance(value, ast.JoinedStr):
        return ["".join(parts) for parts in product(*(texts(part, names, depth) for part in value.values))]
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        return [one + other for one in texts(value.left, names, depth) for other in texts(value.right, names, depth)]
    if isinstance(value, ast.IfExp):
        return texts(value.body, names, depth) + texts(value.orelse, names, depth)
    if isinstance(value, ast.BoolOp):
        found = [text for one in value.values for text in texts(one, names, depth)]
        return [text for text in found if text == ANY or " " in text]
    if isinstance(value, ast.Name) and depth < 3:
        return [text for one in names.get(value.id, []) for text in texts(one, names, depth + 1)] or [ANY]
    return [ANY]


def message_of(call: ast.Call) -> tuple[ast.expr | None, bool]:
    """The message in a call, if there is one; and whether it must be on the page, unlike a line that only informs."""
    name, owner = name_of(call.func), name_of(getattr(call.func, "value", call.func))
    if owner in ("log", "logger") and call.args:
        return call.args[0], name in ("warning", "error", "exception")
    if name == "append" and owner in ("problems", "reasons"):
        return call.args[0], True
    if name == "require":
        return call.args[1], True
    return (call.args[-1] if call.args and name in (*RAISED, *LOST) else None), True


def reasons(function: ast.FunctionDef, names: Mapping[str, list[ast.expr]]) -> set[str]:
    """The texts in a function that are sentences, whole."""
    strings = [item for item in ast.walk(function) if isinstance(item, ast.JoinedStr)]
    within = {part for item in strings for part in ast.walk(item)}
    strings += [item for item in ast.walk(function) if isinstance(item, ast.Constant) and item not in within]
    found = {text for item in strings for text in texts(item, names)} - {ast.get_docstring(function, clean=False)}
    sentences = {text for text in found if len(re.findall(r"[a-z]{2,}", text)) > (2 if ANY in text else 3)}
    return {text for text in sentences if not any(text in other for other in sentences - {text})}


def collected() -> Iterator[tuple[str, bool, str]]:
    """Every text, whether it must be on the page, and the function that it stands in."""
    for module, tree in TREES.items():
        bodies = [tree.body, *(item.body for item in tree.body if isinstance(item, ast.ClassDef))]
        for function in [item for body in bodies for item in body if isinstance(item, ast.FunctionDef)]:
            names = {**known(module), **locals_of(function)}
            calls = [message_of(item) for item in ast.walk(function) if isinstance(item, ast.Call)]
            found = [(text, needed) for value, needed in calls if value for text in texts(value, names)]
            if function.name in REASONS.get(module, []):
                found += [(text, True) for text in reasons(function, names)]
            for text, needed in found:
                plain = re.sub(rf"(?:%[-.\d]*[a-z]|{ANY})+", ANY, " ".join(text.split()))
                yield plain, needed, f"{module}.{function.name}"


FOUND = list(collected())
MESSAGES = {text: place for text, needed, place in FOUND if needed and re.search("[a-z]", text)}
INTERNAL = [text for alike in NOT_THERE.values() for text in alike]
CELLS = re.findall(r"^\| (\*.*?) \| \S.* \| \S.* \|$", PAGE, re.MULTILINE)
QUOTED = [re.sub(r"\\(.)", r"\1", words) for cell in CELLS for words in re.findall(r"\*((?:[^*\\]|\\.)+)\*", cell)]


def pattern(quoted: str) -> re.Pattern[str]:
    """What a quotation stands for; one that begins with `KEY=` stands for every key of the configuration."""
    words = re.escape(quoted).replace(ANY, ".*")
    return re.compile(re.sub("^KEY", rf"^[\\w.{ANY}-]+", words))


PATTERNS = {quoted: pattern(quoted) for quoted in QUOTED}


def documented(text: str) -> bool:
    """Say whether a row is for all messages of this form, or quotes the longest part of it that is always the same."""
    longest = max((part.strip(" :;,.()'\"") for part in text.split(ANY)), key=len)
    return any(
        shape.search(text) and (quoted.startswith("KEY=") or longest in quoted) for quoted, shape in PATTERNS.items()
    )


def test_there_are_messages() -> None:
    assert len(MESSAGES) > 400
    assert len(PATTERNS) > 300


def test_every_message_is_on_the_page() -> None:
    """One that is not needs a row in docs/troubleshooting.md, or a reason in `NOT_THERE` why no user meets it."""
    left_out = {text: place for text, place in MESSAGES.items() if not documented(text) and text not in INTERNAL}
    assert left_out == {}


def test_words_from_elsewhere() -> None:
    """A message without words of its own hides them from this test: those it carries must be found where they are."""
    assert {place for text, needed, place in FOUND if needed and not re.search("[a-z]", text)} == CARRIERS


def test_every_message_on_the_page_is_in_the_code() -> None:
    everything = [text for text, _, _ in FOUND]
    assert [quoted for quoted, shape in PATTERNS.items() if not any(map(shape.search, everything))] == []
    assert [text for text in INTERNAL if text not in MESSAGES or documented(text)] == []


def test_a_new_message_is_not_covered_by_chance() -> None:
    for text in ("… is missing a wheel", "clip … is too loud", "checkpoint.load=… is out of date", "it was late"):
        assert not documented(text)


def test_the_contents_are_the_sections() -> None:
    titles = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert re.findall(r"\[([^\]]+)\]\(#", PAGE.split("\n## ")[0]) == titles
