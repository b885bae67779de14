"""What is written beside edited pictures: a row for each, the settings of all, and what a run may go on from."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from palimpsest.core.declared import fitted, parsed, read
from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.core.printable import printable
from palimpsest.receipt.make import Receipt

SETTINGS, KEPT, TABLE = "settings.json", "edits.jsonl", "edits.csv"
IMAGES, REGIONS, REBUILT = "images", "masks", "rebuilt"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is written of one picture.

    Args:
        name: its path among the sources. sha256, written: of the file, before and after.
        key: hash of everything that its edit follows from.
        said, asked, avoided: its prompts; captioned: where the caption is from.
        reconstruction: dB of the rebuilt picture against the source, at the model's size: what the way alone costs.
        outside: grey levels by which the written file differs from the source outside the region, on average.
        region: the share of the picture that may differ. seconds: of the edit.
        flags: what should be looked at.
    """

    name: str
    sha256: str
    written: str
    key: str
    said: str
    asked: str
    avoided: str
    captioned: str
    reconstruction: float | None
    outside: float
    region: float
    seconds: float
    flags: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class EditedFolder:
    """What became of a folder of pictures.

    Args:
        out: where they were written. rows: one a picture, in the order of their names.
        kept: how many were there already. skipped: what was passed over, with the reason.
        receipt: what was measured of them.
    """

    out: Path
    rows: tuple[Row, ...]
    kept: int
    skipped: tuple[str, ...]
    receipt: Receipt

    def summary(self) -> str:
        """In sentences, what should be looked at first."""
        n, poor = len(self.rows), [row for row in self.rows if row.flags]
        decibels = sorted(row.reconstruction for row in self.rows if row.reconstruction is not None)
        lines = [
            f"{n} {'picture' if n == 1 else 'pictures'} edited"
            + (f", {self.kept} of them in an earlier run." if self.kept else ".")
        ]
        if decibels:
            lines.append(
                f"Rebuilt with nothing asked: worst {decibels[0]:.1f} dB, median {decibels[len(decibels) // 2]:.1f} dB."
            )
        exact = sum(row.outside == 0 for row in self.rows)
        lines.append(f"Outside the region {exact} of {n} files hold the source's pixels, bit for bit.")
        lines += [f"look at  {printable(row.name)}: {'; '.join(row.flags)}" for row in poor[:20]]
        if len(poor) > 20:
            lines.append(f"and {len(poor) - 20} more, see {TABLE}.")
        return "\n".join([*lines, *(f"skipped  {printable(text)}" for text in self.skipped)])


def lasting(seconds: float) -> str:
    """A time in words, for a forecast."""
    count, unit = (seconds, "second") if seconds < 90 else (seconds / 60, "minute")
    return f"{max(1, round(count))} {unit}{'' if round(count) <= 1 else 's'}"


def refuse_other(folder: Path, settings: Mapping[str, Any], again: bool) -> None:
    """Raises BadRequest where a folder holds edits of other settings, unless it shall go on `again`."""
    if not (folder / SETTINGS).is_file() or again:
        return
    there, settings = read(folder / SETTINGS, dict[str, Any], "settings of edits"), json.loads(json.dumps(settings))
    other = sorted(name for name in {*there, *settings} if there.get(name) != settings.get(name))
    if other:
        raise BadRequest(
            f"{folder} holds edits of other settings ({', '.join(map(printable, other))}). Give another --out, or "
            "--again to edit the pictures anew."
        )


def kept_in(folder: Path) -> dict[str, Row]:
    """The rows of finished pictures; a last line that was not finished is passed over."""
    rows = {}
    for line in _lines(folder / KEPT):
        try:
            row = fitted(parsed(line, dict[str, Any], KEPT), Row, KEPT)
        except Damaged:
            continue
        rows[row.name] = row
    return rows


def _lines(path: Path) -> Iterator[str]:
    if path.is_file():
        yield from path.read_text(encoding="utf-8", errors="replace").splitlines()


def holds(path: Path, sha256: str) -> bool:
    """Whether a file is there, whole."""
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def table(rows: Sequence[Row]) -> str:
    """The rows as a CSV file; control characters are made visible, and what a spreadsheet would compute is quoted."""
    names = [f.name for f in fields(Row) if f.name != "key"]
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(names)
    for row in rows:
        lines.writerow([printable(_cell(getattr(row, name))) for name in names])
    return text.getvalue()


def _cell(value: Any) -> str:
    text = "; ".join(value) if isinstance(value, tuple) else "" if value is None else str(value)
    return f"'{text}" if isinstance(value, str) and text[:1] in tuple("=+-@") else text
