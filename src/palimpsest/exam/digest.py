"""The key of a record: a digest of everything that a run depends on."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import tokenize
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from palimpsest import tiny
from palimpsest.core import catalog
from palimpsest.exam import budgets
from palimpsest.exam.case import Exam

FORMAT = "bfloat16"  # in which pictures are drawn: see exam/pictures.py
# Rooms that show, tell or run, and decide no result.
ABOVE = ("cli", "exam", "export", "machine", "processes", "progress", "receipt", "testing")
BY_FOLDER = ("hosts",)  # their files are found by folder, not by import


def key(exam: Exam, system: str, case: Mapping[str, Any], seed: int) -> str:
    """Of a run: its work and case, the system with its budget, all source that either reaches, and the models."""
    parts = [exam.name, exam.version, FORMAT, exam.words(case), _plain(case), seed, system]
    if "/" in system:
        parts += [budgets.parameters(system, exam.words(case)), source(catalog.find(system).module)]
    parts += [source(exam.examine.__module__), [model_digest(name) for name in exam.models(case)]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@cache
def model_digest(name: str) -> str:
    """Of all files of a shipped model ("tiny/sd" or "sd"); "" where it is not shipped."""
    name = name.removeprefix("tiny/")
    if name not in tiny.names():
        return ""
    digest = hashlib.sha256()
    for file in sorted(p for p in tiny.path(name).rglob("*") if p.is_file()):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


@cache
def source(module: str) -> str:
    """Of the code of a module and of all it imports below the exam, directly or not: core, hosts, ops, train, ...

    Rooms ABOVE are followed but not read, the exam among them, so that a table can be reworded without another run;
    `Exam.version` stands for what they do.
    """
    code: dict[str, str] = {}
    queue = [module]
    while queue:
        name = queue.pop()
        path = _file(name)
        if name in code or path is None:
            continue
        room = name.split(".")[1] if name.startswith("palimpsest.") else ""
        code[name] = "" if room in ABOVE else _code(path)
        queue += _imports(path)
        if room in BY_FOLDER:
            queue += [f"{name.rpartition('.')[0]}.{p.stem}" for p in path.parent.glob("[a-z]*.py")]
    return hashlib.sha256(json.dumps(code, sort_keys=True).encode()).hexdigest()


def _file(module: str) -> Path | None:
    """The file of a module; None for a name that is none, and for the package of everything."""
    if module.split(".")[0] != "palimpsest":
        spec = find_spec(module)
        return Path(spec.origin) if spec is not None and spec.origin else None
    parts = module.split(".")[1:]
    stem = catalog.ROOT.joinpath(*parts)
    return next((f for f in (stem.with_suffix(".py"), stem / "__init__.py") if parts and f.is_file()), None)


@cache
def _imports(path: Path) -> tuple[str, ...]:
    """Names of ours that a file imports anywhere: modules, and what may be a module of a package."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
    return tuple(n for n in dict.fromkeys(names) if n.startswith("palimpsest."))


@cache
def _code(path: Path) -> str:
    """A file without docstrings, comments and blank lines, since words make no result stale; and the data beside it."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] = lines[token.start[0] - 1][: token.start[1]]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body and ast.get_docstring(node) is not None else None
            for line in range(first.lineno - 1, first.end_lineno or 0) if first is not None else ():
                lines[line] = ""
    beside = path.with_suffix(".json")  # what a module reads at its import decides results as its code does
    data = beside.read_text(encoding="utf-8") if beside.is_file() else ""
    return "\n".join(line.rstrip() for line in lines if line.strip()) + data


def _plain(value: Any) -> Any:
    """Mappings and sequences as JSON holds them."""
    return json.loads(json.dumps(value))
