"""Finds the installed systems: path = id = docs page = test id. Reads their cards from source, importing nothing.

A system is a file `palimpsest/<verb>/<name>.py` with a class that has `card = Card(...)` in literals. Other packages
add systems through the entry-point group "palimpsest.systems": name = id ("erase/mine"), value = its module.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from palimpsest.core.card import Card
from palimpsest.core.errors import BadRequest

VERBS = ("insert", "edit", "erase", "unlearn", "protect", "encode", "adapt", "restore")
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A dataclass field of a system, as its source spells it."""

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


@lru_cache(maxsize=1)
def entries() -> dict[str, Entry]:
    """Every installed system by id, sorted. Cost: parsing one small file each."""
    found = {}
    for id_, module, path in _files():
        entry = _read(id_, module, path)
        if entry is not None:
            found[id_] = entry
    return dict(sorted(found.items()))


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


def _files() -> Iterator[tuple[str, str, Path]]:
    for verb in VERBS:
        for path in sorted((ROOT / verb).glob("[a-z]*.py")):
            yield f"{verb}/{path.stem}", f"palimpsest.{verb}.{path.stem}", path
    for point in entry_points(group="palimpsest.systems"):
        spec = find_spec(point.module)
        if spec is not None and spec.origin:
            yield point.name, point.module, Path(spec.origin)


def _read(id_: str, module: str, path: Path) -> Entry | None:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        card = next((s.value for s in node.body if _assigns_card(s)), None)  # type: ignore[attr-defined]
        if isinstance(card, ast.Call):
            values = {k.arg: ast.literal_eval(k.value) for k in card.keywords if k.arg}
            doc = ast.get_docstring(node) or ast.get_docstring(tree) or ""
            return Entry(id=id_, module=module, cls=node.name, card=Card(**values), doc=doc, parameters=_fields(node))
    return None


def _assigns_card(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Assign)
        and any(isinstance(t, ast.Name) and t.id == "card" for t in statement.targets)
        and isinstance(statement.value, ast.Call)
        and getattr(statement.value.func, "id", "") == "Card"
    )


def _fields(node: ast.ClassDef) -> tuple[Parameter, ...]:
    return tuple(
        Parameter(
            name=s.target.id,
            type=ast.unparse(s.annotation),
            default=ast.unparse(s.value) if s.value is not None else "",
        )
        for s in node.body
        if isinstance(s, ast.AnnAssign)
        and isinstance(s.target, ast.Name)
        and "ClassVar" not in ast.unparse(s.annotation)
    )
