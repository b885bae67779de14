"""Lists of concepts from CSV files, as spreadsheets and other tools write them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from palimpsest.core.concept import Kind
from palimpsest.core.errors import BadRequest

NAMES = ("name", "concept", "target")
PROMPTS = ("prompts", "prompt")
BETWEEN = "|"  # prompts in one cell


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A concept as a file names it; kind None and toward "" where the file does not say."""

    name: str
    kind: Kind | None = None
    prompts: tuple[str, ...] = ()
    toward: str = ""


def is_list(text: object) -> bool:
    """Whether what a user gave as concepts is a CSV file rather than names."""
    return isinstance(text, Path) or (isinstance(text, str) and text.strip().casefold().endswith(".csv"))


def read_concepts(path: str | Path) -> list[Listed]:
    """The concepts of a CSV file, in its order.

    Columns by their heading, in any order: `name` (or concept, target), and optionally `kind`, `prompts` (or prompt;
    several in one cell with | between) and `toward`. Other columns are ignored, as are empty rows. Rows of the same
    name are one concept with all their prompts. Commas, semicolons and tabs separate; UTF-8, with or without a mark.

    Raises:
        BadRequest: no such file, no column of names, no concept, an unknown kind, or rows that contradict each other.
    """
    place = Path(path)
    try:
        text = place.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise BadRequest(f"{place} cannot be read as a list of concepts: {e}. Give a CSV file in UTF-8.") from e
    first = text.partition("\n")[0]
    rows = csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=first.count))
    heads = {h.strip().casefold(): h for h in rows.fieldnames or () if h}
    name_of = next((heads[h] for h in NAMES if h in heads), None)
    if name_of is None:
        raise BadRequest(f"{place} has no column {NAMES[0]!r} in its first line; it has {', '.join(heads) or 'none'}.")
    prompts_of = next((heads[h] for h in PROMPTS if h in heads), "")
    found: dict[str, Listed] = {}
    for line, row in enumerate(rows, start=2):
        name = (row.get(name_of) or "").strip()
        if not name:
            continue
        prompts = tuple(p.strip() for p in (row.get(prompts_of) or "").split(BETWEEN) if p.strip())
        toward = (row.get(heads.get("toward", "")) or "").strip()
        entry = Listed(
            name=name, kind=_kind(row.get(heads.get("kind", "")), place, line), prompts=prompts, toward=toward
        )
        earlier = found.get(name.casefold())
        found[name.casefold()] = entry if earlier is None else _joined(earlier, entry, place, line)
    if not found:
        raise BadRequest(f"{place} names no concept; write one a line under {name_of!r}.")
    return list(found.values())


def _kind(text: str | None, place: Path, line: int) -> Kind | None:
    kind = (text or "").strip().casefold()
    if kind and kind not in get_args(Kind):
        raise BadRequest(f"Line {line} of {place} has the kind {kind!r}; use one of {', '.join(get_args(Kind))}.")
    return cast(Kind, kind) if kind else None


def _joined(a: Listed, b: Listed, place: Path, line: int) -> Listed:
    for what, first, second in (("kind", a.kind, b.kind), ("toward", a.toward, b.toward)):
        if first and second and first != second:
            raise BadRequest(f"Line {line} of {place} gives {a.name!r} the {what} {second!r}; before it was {first!r}.")
    prompts = tuple(dict.fromkeys((*a.prompts, *b.prompts)))
    return Listed(name=a.name, kind=a.kind or b.kind, prompts=prompts, toward=a.toward or b.toward)
