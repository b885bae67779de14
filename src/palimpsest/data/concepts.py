"""Lists of concepts from CSV files, as spreadsheets and other tools write them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from palimpsest.core.concept import Kind
from palimpsest.core.errors import BadRequest
from palimpsest.data.tables import read_table

NAMES = ("name", "concept", "target")
SEVERAL = "|"  # between the prompts or labels of one cell


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A concept as a file names it; kind None and the rest empty where the file does not say."""

    name: str
    kind: Kind | None = None
    prompts: tuple[str, ...] = ()
    labels: tuple[str | int, ...] = ()
    toward: str = ""

    def __str__(self) -> str:
        """What was read of it, in one line."""
        said = [self.kind or "", f"{len(self.prompts)} prompts: {'; '.join(self.prompts)}" if self.prompts else ""]
        said += [
            f"labels {', '.join(map(str, self.labels))}" if self.labels else "",
            self.toward and f"-> {self.toward}",
        ]
        return "  ".join(filter(None, (self.name, *said)))


def is_list(text: object) -> bool:
    """Whether what a user gave as concepts is a CSV file rather than names."""
    return isinstance(text, Path) or (isinstance(text, str) and text.strip().casefold().endswith(".csv"))


def read_concepts(path: str | Path) -> list[Listed]:
    """The concepts of a CSV file, in its order.

    Columns by their heading, in any order: `name` (or concept, target), and optionally `kind`, `prompt` (one, as it
    stands), `prompts` (several in one cell, with | between), `labels` (the classes that mean it to a judge: names or
    numbers, with | between) and `toward`. Other columns are ignored. Rows of the same name are one concept with all
    their prompts and labels. The file is read as `data.tables.read_table` says.

    Raises:
        BadRequest: no such file, no column of names, no concept, an unknown kind, or rows that contradict each other.
    """
    table = read_table(path, "a list of concepts")
    name_of = table.column(NAMES)
    if name_of is None:
        heads = ", ".join(table.heads) or "none"
        raise BadRequest(f"{table.path} has no column {NAMES[0]!r} in its first line; it has {heads}.")
    listed: dict[str, Listed] = {}
    for line, row in table.below():
        name = row.get(table.heads[name_of], "")
        if not name:
            continue
        entry = Listed(
            name=name,
            kind=_kind(row.get("kind"), table.path, line),
            prompts=tuple(filter(None, (row.get("prompt"), *_several(row.get("prompts"))))),
            labels=tuple(int(label) if label.isdecimal() else label for label in _several(row.get("labels"))),
            toward=row.get("toward", ""),
        )
        earlier = listed.get(name.casefold())
        listed[name.casefold()] = entry if earlier is None else _joined(earlier, entry, table.path, line)
    if not listed:
        raise BadRequest(f"{table.path} names no concept; write one a line under {table.heads[name_of]!r}.")
    return list(listed.values())


def _several(cell: str | None) -> list[str]:
    return [part.strip() for part in (cell or "").split(SEVERAL) if part.strip()]


def _kind(text: str | None, place: Path, line: int) -> Kind | None:
    kind = (text or "").strip().casefold()
    if kind and kind not in get_args(Kind):
        raise BadRequest(f"Line {line} of {place} has the kind {kind!r}; use one of {', '.join(get_args(Kind))}.")
    return cast(Kind, kind) if kind else None


def _joined(a: Listed, b: Listed, place: Path, line: int) -> Listed:
    for what, first, second in (("kind", a.kind, b.kind), ("toward", a.toward, b.toward)):
        if first and second and first != second:
            raise BadRequest(f"Line {line} of {place} gives {a.name!r} the {what} {second!r}; before it was {first!r}.")
    return Listed(
        name=a.name,
        kind=a.kind or b.kind,
        prompts=tuple(dict.fromkeys((*a.prompts, *b.prompts))),
        labels=tuple(dict.fromkeys((*a.labels, *b.labels))),
        toward=a.toward or b.toward,
    )
