"""What a `metadata.csv` or `metadata.jsonl` beside pictures says of each of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from palimpsest.core.declared import parsed, text_of
from palimpsest.core.errors import BadRequest
from palimpsest.data.raw import CAPTIONS, IDENTITY, LABELS
from palimpsest.data.tables import read_table

METADATA = ("metadata.csv", "metadata.jsonl")
FILE = "file_name"
MOST_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class Fact:
    """What is known of one picture."""

    label: Any
    caption: str
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Facts:
    """What a file says of the pictures beside it, by their paths."""

    path: Path
    rows: Mapping[str, Mapping[str, Any]]

    @property
    def has_labels(self) -> bool:
        return any(name in row for row in self.rows.values() for name in LABELS)

    def of(self, picture: str) -> Fact:
        """The known of a picture: label, caption and the other columns as text."""
        return fact(self.rows[picture])

    def check(self, pictures: Sequence[str]) -> None:
        """Raises BadRequest where file and folder do not hold the same pictures."""
        here = set(pictures)
        gone = [name for name in self.rows if name not in here]
        unknown = [name for name in pictures if name not in self.rows]
        for names, wrong in ((gone, "are not there"), (unknown, "it does not name")):
            if names:
                raise BadRequest(f"{len(names)} pictures {wrong} ({self.path}), first {names[0]}; correct its {FILE}.")


def fact(row: Mapping[str, Any]) -> Fact:
    """One row of facts parted into label, caption and other columns."""
    known = {name: value for name, value in row.items() if name != FILE and value is not None}
    label = next((known.pop(name, None) for name in LABELS if name in row), None)
    caption = next((str(known.pop(name)) for name in CAPTIONS if name in known), "")
    whose = next((name for name in IDENTITY if name in known), None)
    if whose is not None:
        value = known.pop(whose)
        known["identity"] = f"s{value}" if isinstance(value, int) else str(value)
    return Fact(label=label, caption=caption, columns={name: _text(value) for name, value in known.items()})


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def metadata_of(folder: Path) -> Facts | None:
    """The facts that lie in a folder of pictures; None where there are none.

    Raises:
        BadRequest: both files, no column `file_name`, a picture twice. Damaged: a line that is no JSON.
    """
    there = [folder / name for name in METADATA if (folder / name).is_file()]
    if not there:
        return None
    if len(there) > 1:
        raise BadRequest(f"{folder} has both {' and '.join(METADATA)}; keep one.")
    return facts_of(there[0])


def facts_of(file: Path) -> Facts:
    """The facts in a .csv or .jsonl file with the column `file_name`; raises as `metadata_of`."""
    rows = _lines(file) if file.suffix == ".jsonl" else [row for _, row in read_table(file, "metadata").below()]
    facts: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        name = row.get(FILE)
        if not isinstance(name, str) or not name:
            raise BadRequest(f"{file} has a row without {FILE!r}, the path of its picture; every row needs one.")
        name = PurePosixPath(name).as_posix()
        if name in facts:
            raise BadRequest(f"{file} names {name} twice; give one row for each picture.")
        facts[name] = row
    return Facts(file, facts)


def _lines(file: Path) -> list[dict[str, Any]]:
    lines = text_of(file, "metadata", most=MOST_BYTES).splitlines()
    return [parsed(line, dict[str, Any], f"{file}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
