"""How large and how entangled the code is: one figure a line.

python benchmarks/measure.py
"""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fedgen"
MOST_PARAMETERS = 7


def trees() -> dict[str, ast.Module]:
    """Return the syntax tree of every module, by its dotted name."""
    files = {path: path.relative_to(ROOT).with_suffix("") for path in sorted(PACKAGE.rglob("*.py"))}
    return {".".join(name.parts).removesuffix(".__init__"): ast.parse(path.read_text()) for path, name in files.items()}


def package_lines() -> int:
    """Return the lines of the package's Python files, with comments and docstrings."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py"))


def longest_chain(modules: dict[str, ast.Module]) -> int:
    """Return how many modules stand in the longest chain of imports at the top of a module."""
    imports = {
        name: {target for node in tree.body for target in imported(node, modules)} for name, tree in modules.items()
    }

    @cache
    def depth(name: str) -> int:
        return 1 + max((depth(target) for target in imports[name] - {name}), default=0)

    return max(map(depth, imports))


def imported(node: ast.stmt, modules: dict[str, ast.Module]) -> list[str]:
    """Return the package's modules that a statement imports."""
    if not isinstance(node, ast.ImportFrom) or node.module not in modules:
        return []
    return [name for alias in node.names if (name := f"{node.module}.{alias.name}") in modules] or [node.module]


def parameters(function: ast.FunctionDef) -> int:
    """Return how many parameters a function has, without ``self``, ``*args`` and ``**options``."""
    arguments = function.args
    return len(
        {item.arg for item in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)} - {"self", "cls"}
    )


def methods(module: ast.Module, name: str) -> dict[str, ast.FunctionDef]:
    """Return the methods of a class, by name; none where there is no such class."""
    found = [item for item in module.body if isinstance(item, ast.ClassDef) and item.name == name]
    return {item.name: item for cls in found for item in cls.body if isinstance(item, ast.FunctionDef)}


def seconds_of_help() -> float:
    """Return the CPU time of ``fedgen --help``."""
    code = "import time, fedgen.cli\ntry: fedgen.cli.main(['--help'])\nexcept SystemExit: print(time.process_time())"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return round(float(shown.stdout.splitlines()[-1]), 2)


def measures() -> dict[str, float]:
    """Return every figure by its name."""
    modules = trees()
    functions = [node for tree in modules.values() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    (strategy,) = (c for c in modules["fedgen.strategy"].body if getattr(c, "name", "") == "SyntheticPooling")
    fields = [ast.unparse(item) for item in strategy.body if isinstance(item, ast.AnnAssign)]
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    return {
        "modules at the root": sum(path.name != "__init__.py" for path in PACKAGE.glob("*.py")),
        "lines of the package": package_lines(),
        "folders": sum(any(path.glob("*.py")) for path in PACKAGE.rglob("*") if path.is_dir()),
        "modules in the longest chain of imports": longest_chain(modules),
        "arguments of the strategy": sum("init=False" not in item for item in fields),
        "methods of Node": len(methods(modules["fedgen.node.node"], "Node")),
        f"functions with more than {MOST_PARAMETERS} parameters": sum(
            parameters(f) > MOST_PARAMETERS for f in functions
        ),
        "CPU seconds of fedgen --help": seconds_of_help(),
        "words of README and docs": sum(len(page.read_text(encoding="utf-8").split()) for page in pages),
    }


if __name__ == "__main__":
    for name, value in measures().items():
        print(f"{value:>8} {name}")
