"""Finds the installed verbs and systems: path = id = docs page = test id. Reads both from source, importing nothing.

A verb is a package with `VERB = Verb(...)` in literals; its systems are the files beside, each with a class that has
`card = Card(...)` in literals. Other packages add verbs by the entry-point group "palimpsest.verbs" (name = verb, value
= its package) and single systems by "palimpsest.systems" (name = id, "erase/mine", value = its module).
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from palimpsest.core.card import Card
from palimpsest.core.declared import Within
from palimpsest.core.errors import BadRequest
from palimpsest.core.verb import Verb

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A dataclass field of a system: its default as the source spells it, its type with names of types written out."""

    name: str
    type: str
    default: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is known of a system without importing it."""

    id: str
    module: str
    cls: str
    card: Card
    doc: str
    parameters: tuple[Parameter, ...]


@cache
def verbs() -> dict[str, Verb]:
    """Every installed verb by name; ours first, sorted."""
    return {name: verb for name, (_, verb) in _packages().items()}


@cache
def entries() -> dict[str, Entry]:
    """Every installed system by id, sorted. Cost: parsing one small file each, and those of their bases."""
    return dict(sorted((id_, entry) for id_, module in _modules() if (entry := _read(id_, module)) is not None))


def find(name: str, verb: str | None = None) -> Entry:
    """The system with this id ("erase/esd") or, within a verb, this short name ("esd").

    Raises:
        BadRequest: no such system; the message names those that come close.
    """
    id_ = name if "/" in name or verb is None else f"{verb}/{name}"
    id_ = id_.lower().replace("-", "_")
    known = entries()
    if id_ not in known:
        import difflib

        pool = [k for k in known if verb is None or k.startswith(verb + "/")]
        close = difflib.get_close_matches(id_, pool, n=3, cutoff=0.4) or pool[:8]
        raise BadRequest(f"There is no system {name!r}. Did you mean {', '.join(close)}? See `palimpsest ls`.")
    return known[id_]


def load(id_: str) -> Any:
    """The class of a system."""
    entry = find(id_)
    return getattr(importlib.import_module(entry.module), entry.cls)


def id_of(module: str) -> str:
    """The id of the system that a module defines; the module's own name where it is not an installed system's."""
    parts = module.split(".")
    if parts[0] == "palimpsest":
        return "/".join(parts[1:])
    return next((e.id for e in entries().values() if e.module == module), module)


def package_of(verb: str) -> str:
    """The package that declares a verb and holds its systems."""
    return _packages()[verb][0]


def _packages() -> dict[str, tuple[str, Verb]]:
    """The package and the literal of every verb."""
    named = {path.parent.name: f"palimpsest.{path.parent.name}" for path in sorted(ROOT.glob("*/__init__.py"))}
    named = {**{p.name: p.module for p in entry_points(group="palimpsest.verbs")}, **named}
    found = {name: (package, verb) for name, package in named.items() if (verb := _verb(package)) is not None}
    return dict(sorted(found.items(), key=lambda item: (not item[1][0].startswith("palimpsest."), item[0])))


def _verb(package: str) -> Verb | None:
    tree = _tree(package)
    values = [] if tree is None else [_called(s, "VERB", "Verb") for s in tree.body]
    return next((Verb(**_literals(call)) for call in values if call is not None), None)


def _modules() -> Iterator[tuple[str, str]]:
    """Ids and modules of everything that may be a system."""
    for verb, (package, _) in _packages().items():
        source = source_of(package)
        for path in sorted(source.parent.glob("[a-z]*.py")) if source is not None else ():
            yield f"{verb}/{path.stem}", f"{package}.{path.stem}"
    for point in entry_points(group="palimpsest.systems"):
        yield point.name, point.module


def _read(id_: str, module: str) -> Entry | None:
    tree = _tree(module)
    for node in [] if tree is None else tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        card = next((call for s in node.body if (call := _called(s, "card", "Card")) is not None), None)
        if card is not None:
            doc = ast.get_docstring(node) or (ast.get_docstring(tree) if tree is not None else "") or ""
            parameters = tuple(f for f in _fields(module, node).values() if "ClassVar" not in f.type)
            return Entry(
                id=id_, module=module, cls=node.name, card=Card(**_literals(card)), doc=doc, parameters=parameters
            )
    return None


def _called(statement: ast.stmt, name: str, cls: str) -> ast.Call | None:
    """The call in `name = cls(...)`."""
    if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Call):
        return None
    assigned = any(isinstance(t, ast.Name) and t.id == name for t in statement.targets)
    return statement.value if assigned and getattr(statement.value.func, "id", "") == cls else None


def _literals(call: ast.Call) -> dict[str, Any]:
    return {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}


# -- source ----------------------------------------------------------------------------------------------


def source_of(module: str) -> Path | None:
    """The file of a module, found without importing it or its parents."""
    top, *rest = module.split(".")
    if top == "palimpsest":
        roots: list[str] = [str(ROOT)]
    else:
        spec = None if top in sys.stdlib_module_names else find_spec(top)
        if spec is not None and not rest and spec.origin and not spec.submodule_search_locations:
            return Path(spec.origin)
        roots = list(spec.submodule_search_locations or ()) if spec is not None else []
    below = [Path(root).joinpath(*rest) for root in roots]
    files = [f for path in below for f in (path / "__init__.py", path.with_suffix(".py")) if f.is_file()]
    return files[0] if files else None


@cache
def _tree(module: str) -> ast.Module | None:
    path = source_of(module)
    return None if path is None else ast.parse(path.read_text(encoding="utf-8"), str(path))


def _fields(module: str, node: ast.ClassDef) -> dict[str, Parameter]:
    """The fields of a dataclass in its own order: those of its bases first, each where it first stood.

    Class variables are among them: a field that was one in a base stands where the base named it.
    """
    found: dict[str, Parameter] = {}
    for base in reversed(node.bases):
        where, cls = _class(module, base)
        found |= _fields(where, cls) if cls is not None else {}
    for s in node.body:
        if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name):
            default = ast.unparse(s.value) if s.value is not None else ""
            found[s.target.id] = Parameter(name=s.target.id, type=_said(module, s.annotation), default=default)
    return found


def _said(module: str, hint: ast.expr) -> str:
    """What values a field takes: "int at least 1 or None" where the source has `Count | None`."""
    if isinstance(hint, ast.BinOp):
        return f"{_said(module, hint.left)} or {_said(module, hint.right)}"
    if isinstance(hint, ast.Name):
        where, alias = _bound(module, hint.id)
        return _said(where, alias.value) if isinstance(alias, ast.Assign) else hint.id
    if isinstance(hint, ast.Subscript) and isinstance(hint.slice, ast.Tuple) and isinstance(hint.value, ast.Name):
        parts, kind = hint.slice.elts, hint.value.id
        if kind == "Literal":
            return ", ".join(str(ast.literal_eval(part)) for part in parts)
        if kind == "Annotated" and isinstance(call := parts[1], ast.Call):
            return f"{_said(module, parts[0])} {Within(*map(ast.literal_eval, call.args), **_literals(call))}"
    return ast.unparse(hint)


def _class(module: str, base: ast.expr) -> tuple[str, ast.ClassDef | None]:
    """The source of a base class, and the module that it stands in."""
    where, found = _bound(module, base.id if isinstance(base, ast.Name) else "")
    return where, found if isinstance(found, ast.ClassDef) else None


def _bound(module: str, name: str) -> tuple[str, ast.stmt | None]:
    """What a name is bound to: in the same module, or in the one that it was imported from."""
    tree = _tree(module)
    for node in [] if tree is None else tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return module, node
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _bound(node.module, alias.name)
    return module, None
