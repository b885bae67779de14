"""Prompts of one's own from files: the tables that papers on erasure publish, metadata of pictures, plain text."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from palimpsest.core import declared
from palimpsest.core.errors import BadRequest
from palimpsest.data.tables import BETWEEN, decoded, read_table

PROMPTS = ("prompt", "prompts", "text", "caption", "sensitive prompt", "sensitive_prompt")
SEEDS = ("evaluation_seed", "sd_seed", "seed")
GUIDANCE = ("evaluation_guidance", "sd_guidance_scale", "sd_guidance", "guidance_scale", "guidance")
"""Headings of a column, the most telling first; without case, of the first line of a table or the keys of JSON."""
MOST_SEED, MOST_GUIDANCE = 2**64 - 1, 1000.0
NAMED = 5  # rows that a message names
MOST_BYTES = 2**28
JSON, LINES = (".json", ".jsonl"), (".txt",)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a file of prompts.

    Args:
        prompt: not empty. seed: of its picture, 0 to 2**64 - 1; None: the file gives none.
        guidance: scale of classifier-free guidance; None: the file gives none.
    """

    prompt: str
    seed: int | None = None
    guidance: float | None = None


class LeftOut(NamedTuple):
    """Rows that are not drawn, and why."""

    lines: tuple[int, ...]
    why: str


@dataclass(frozen=True, kw_only=True)
class PromptFile:
    """What a file of prompts holds.

    Args:
        path: of the file. sha256: of its bytes. rows: in its order, none twice.
        columns: "prompt", "seed" and "guidance" -> the heading under which each was found; {}: it is plain text, one
            prompt a line.
        unused: headings of other columns. left_out: rows without a prompt, and rows that repeat an earlier one with
            its seed. again: rows that repeat a prompt without a seed; each has a picture of its own.
    """

    path: Path
    sha256: str
    rows: tuple[Row, ...]
    columns: Mapping[str, str]
    unused: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    again: int = 0

    def told(self) -> list[str]:
        """What was read and what was not, a line each."""
        how = ", ".join(f"{what} from {head!r}" for what, head in self.columns.items()) or "one a line"
        lines = [f"prompts  {self.path.name}: {len(self.rows):,} rows read ({how}), first {_short(self.rows[0])}"]
        if self.unused:
            lines.append(f"         columns not used: {', '.join(self.unused)}")
        if self.again:
            lines.append(f"         {self.again:,} rows repeat a prompt and have no seed; each gets a seed of its own")
        return [*lines, *(f"         left out: {text}" for text in self.omitted())]

    def omitted(self) -> list[str]:
        """The rows that were left out, in words."""
        lines = ((out, "line" if len(out.lines) == 1 else "lines") for out in self.left_out)
        return [f"{out.why}: {len(out.lines):,} ({line} {_some(out.lines)})" for out, line in lines]


def read_prompts(path: str | Path) -> PromptFile:
    """The prompts of a file, with the seed and the guidance of each where the file gives them.

    Tables (CSV as `data.tables.read_table` reads it) have a heading of `PROMPTS` in their first line, in any order and
    case, and may have one of `SEEDS` and one of `GUIDANCE`; that covers I2P, COCO captions, UnlearnDiffAtk, ESD, UCE,
    SPEED, Ring-A-Bell and `metadata.csv`. JSON is a list of texts or of objects with such keys, `.jsonl` one object a
    line. Without a heading, and in `.txt`, every line that is not empty is a prompt, the first one too (HUB, plain
    text). A cell that is empty gives nothing, so that seeds may be known of some rows only.

    Raises:
        BadRequest: no such file, not UTF-8, no prompt, a table without a column of prompts, or values that are no
            seeds or scales, with the lines that they stand on.
    """
    place = Path(path).expanduser()
    content = _bytes(place)
    suffix = place.suffix.casefold()
    found = _from_json(content, place) if suffix in JSON else _from_text(content, place)
    rows, left_out = _rows(found.entries, place)
    prompts = [row.prompt for row in rows if row.seed is None]
    if not rows:
        raise BadRequest(f"{place} holds no prompt; write one a line, or a table with a column 'prompt'.")
    return PromptFile(
        path=place,
        sha256=hashlib.sha256(content).hexdigest(),
        rows=rows,
        columns=found.columns,
        unused=found.unused,
        left_out=left_out,
        again=len(prompts) - len(set(prompts)),
    )


class _Found(NamedTuple):
    """(line, cells by what they mean) of each row, and which headings were read and which not."""

    entries: Iterable[tuple[int, Mapping[str, Any]]]
    columns: Mapping[str, str]
    unused: tuple[str, ...]


def _bytes(place: Path) -> bytes:
    try:
        if place.stat().st_size > MOST_BYTES:
            raise BadRequest(f"{place} is longer than {MOST_BYTES:,} bytes, more than prompts are; give another file.")
        return place.read_bytes()
    except (OSError, ValueError) as e:
        raise BadRequest(f"{place} cannot be read as prompts: {e}. Give a CSV, JSON or text file.") from e


def _from_text(content: bytes, place: Path) -> _Found:
    text = decoded(content, place, "prompts")
    lines = [(n, line.strip()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    cells = _cells(lines[0][1]) if lines else []
    columns, unused = _meant(cells)
    if place.suffix.casefold() in LINES and "prompt" in columns and ("seed" in columns or len(cells) == 1):
        raise BadRequest(f"{place} is named like plain text, but its first line is {lines[0][1]!r}; name it .csv.")
    if place.suffix.casefold() in LINES or "prompt" not in columns:
        wide = sum(len(_cells(line)) == len(cells) for _, line in lines)
        if place.suffix.casefold() not in LINES and len(cells) > 1 and 2 * wide > len(lines):
            raise BadRequest(
                f"{place} has the columns {', '.join(filter(None, cells))}; none is called "
                f"{', '.join(PROMPTS[:4])}. Name the column of prompts so in the first line; where the first line is a "
                "prompt itself, name the file .txt."
            )
        plain = place.suffix.casefold() in LINES
        return _Found([(n, {"prompt": line if plain else _unquoted(line)}) for n, line in lines], {}, ())
    table = read_table(place, "prompts")
    at = {what: table.heads.index(head) for what, head in columns.items()}
    # Cells are looked up by place: papers' tables have nameless columns, and some a heading twice.
    rows = ((n, {what: cells[i] for what, i in at.items() if i < len(cells)}) for n, cells in table.rows[1:])
    return _Found(rows, columns, unused)


def _cells(line: str) -> list[str]:
    """A line's cells by whichever separator makes the most of it, without case."""
    parts = (next(csv.reader([line], delimiter=mark, skipinitialspace=True), []) for mark in BETWEEN)
    return [cell.strip().casefold() for cell in max(parts, key=len)]


def _unquoted(line: str) -> str:
    """A line that is one cell in quotes as that cell; others as they are."""
    try:
        cells = next(csv.reader([line], strict=True)) if line.startswith('"') else ()
    except csv.Error:
        return line
    return cells[0].strip() if len(cells) == 1 else line


def _from_json(content: bytes, place: Path) -> _Found:
    if place.suffix.casefold() == ".jsonl":
        lines = [(n, line) for n, line in enumerate(content.split(b"\n"), 1) if line.strip()]
        plain = [(n, _parsed(line, f"{place}, line {n}")) for n, line in lines]
    else:
        whole = _parsed(content, str(place))
        if not isinstance(whole, list):
            raise BadRequest(f"{place} holds {declared.shown(whole)}; expected a list of prompts, or of objects.")
        plain = list(enumerate(whole, 1))
    if all(isinstance(entry, str) for _, entry in plain):
        return _Found([(n, {"prompt": entry}) for n, entry in plain], {}, ())
    odd = next(((n, entry) for n, entry in plain if not isinstance(entry, dict)), None)
    if odd is not None:
        raise BadRequest(f"{place} holds {declared.shown(odd[1])} (entry {odd[0]}); expected texts, or objects, alone.")
    heads = dict.fromkeys(str(key).casefold() for _, entry in plain for key in entry)
    columns, unused = _meant(heads)
    if "prompt" not in columns:
        raise BadRequest(f"{place} has the keys {', '.join(heads)}; none is called {', '.join(PROMPTS[:4])}.")
    folded = ((n, {str(key).casefold(): value for key, value in entry.items()}) for n, entry in plain)
    rows = ((n, {what: entry[head] for what, head in columns.items() if head in entry}) for n, entry in folded)
    return _Found(rows, columns, unused)


def _parsed(text: bytes, where: str) -> Any:
    try:
        return declared.parsed(text.removeprefix(b"\xef\xbb\xbf"), Any, where)  # type: ignore[arg-type]
    except declared.Damaged as e:
        raise BadRequest(str(e)) from e


def _meant(heads: Collection[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Which heading gives prompts, seeds and guidance, and those that give nothing."""
    wanted = {"prompt": PROMPTS, "seed": SEEDS, "guidance": GUIDANCE}
    columns = {what: next((name for name in names if name in heads), "") for what, names in wanted.items()}
    columns = {what: head for what, head in columns.items() if head}
    return columns, tuple(head for head in heads if head and head not in columns.values())


def _rows(entries: Iterable[tuple[int, Mapping[str, Any]]], place: Path) -> tuple[tuple[Row, ...], tuple[LeftOut, ...]]:
    """The rows that are drawn, and those that are not.

    Raises:
        BadRequest: a value that is no prompt, seed or scale, with the lines of all such values.
    """
    rows: list[Row] = []
    seen: set[Row] = set()
    empty: list[int] = []
    twice: list[int] = []
    odd: dict[str, list[tuple[int, Any]]] = {what: [] for what in _READ}
    for line, cells in entries:
        values: dict[str, Any] = {}
        for what, (read, _) in _READ.items():
            try:
                values[what] = read(cells.get(what))
            except (ValueError, OverflowError):
                odd[what].append((line, cells[what]))
        if len(values) < len(_READ):
            continue
        if not values["prompt"]:
            empty.append(line)
            continue
        row = Row(**values)
        if row.seed is not None and row in seen:
            twice.append(line)
            continue
        seen.add(row)
        rows.append(row)
    for what, found in odd.items():
        if found:
            named = ", ".join(f"{declared.shown(value)} (line {line})" for line, value in found[:NAMED])
            more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
            raise BadRequest(f"{place} has as {what} {named}{more}; expected {_READ[what][1]}.")
    left = [
        LeftOut(tuple(empty), "rows without a prompt"),
        LeftOut(tuple(twice), "rows that repeat an earlier one and its seed"),
    ]
    return tuple(rows), tuple(out for out in left if out.lines)


def _prompt(cell: Any) -> str:
    if cell is not None and not isinstance(cell, str):
        raise ValueError(cell)
    return (cell or "").strip()


def _seed(cell: Any) -> int | None:
    """Raises ValueError where a cell is no seed; 7.0 is one, as tables with empty cells are often written."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    text = repr(cell) if isinstance(cell, (int, float)) else str(cell).strip()
    if isinstance(cell, bool) or not re.fullmatch(r"[0-9]{1,20}(\.0*)?", text):
        raise ValueError(text)
    seed = int(text.partition(".")[0])
    if seed > MOST_SEED:
        raise ValueError(text)
    return seed


def _guidance(cell: Any) -> float | None:
    """Raises ValueError where a cell is no scale."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    if isinstance(cell, bool) or not isinstance(cell, (int, float, str)):
        raise ValueError(cell)
    scale = float(cell)
    if not math.isfinite(scale) or abs(scale) > MOST_GUIDANCE:
        raise ValueError(cell)
    return scale


_READ: Mapping[str, tuple[Callable[[Any], Any], str]] = {
    "prompt": (_prompt, "text"),
    "seed": (_seed, f"a whole number from 0 to {MOST_SEED}, or nothing"),
    "guidance": (_guidance, f"a number from {-MOST_GUIDANCE:g} to {MOST_GUIDANCE:g}, or nothing"),
}


def _some(lines: tuple[int, ...]) -> str:
    return ", ".join(map(str, lines[:NAMED])) + (" ..." if len(lines) > NAMED else "")


def _short(row: Row, most: int = 60) -> str:
    text = json.dumps(row.prompt, ensure_ascii=False)
    return text if len(text) <= most else text[: most - 4] + '..."'
