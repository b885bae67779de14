"""Lists as CSV files, as spreadsheets, editors and other tools write them. One rule for all lists."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from palimpsest.core.errors import BadRequest

BETWEEN = ",;\t"


@dataclass(frozen=True)
class Table:
    """What a CSV file holds.

    Args:
        path: of the file. heads: the first row's cells, without case. rows: (line it ends on, cells) of all that are
            not empty, the first one among them.
    """

    path: Path
    heads: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]

    def column(self, names: Sequence[str]) -> int | None:
        """The place of the first of these headings that the table has."""
        return next((self.heads.index(name) for name in names if name in self.heads), None)

    def below(self) -> list[tuple[int, dict[str, str]]]:
        """(line, cells by heading) of the rows below the headings.

        Raises:
            BadRequest: a heading twice.
        """
        twice = next((head for head in self.heads if head and self.heads.count(head) > 1), None)
        if twice is not None:
            raise BadRequest(f"{self.path} has two columns {twice!r}; name each column once.")
        return [(line, dict(zip(self.heads, cells, strict=False))) for line, cells in self.rows[1:]]


def read_table(path: str | Path, what: str) -> Table:
    """A CSV file in UTF-8, with or without a mark, read by the csv module.

    Commas, semicolons or tabs separate: whichever parts the first row into the most cells. Cells in quotes may hold
    all of them and line ends; blanks around a cell are no part of it. Empty rows are passed over.

    Args:
        what: the file in words, for messages ("a list of concepts").

    Raises:
        BadRequest: the file cannot be read, a quote is not closed, or a row has more cells than the first.
    """
    place = Path(path).expanduser()
    try:
        content = place.read_bytes()
    except (OSError, ValueError) as e:
        raise BadRequest(f"{place} cannot be read as {what}: {e}. Give a CSV file in UTF-8.") from e
    return table_of(decoded(content, place, what), place, what)


def table_of(text: str, place: Path, what: str) -> Table:
    """The same of a text; `place` names it in messages."""
    mark = max(BETWEEN, key=lambda mark: _width(text, mark))
    rows = _cells(text, mark, place, what)
    heads = tuple(cell.casefold() for cell in rows[0][1]) if rows else ()
    for line, cells in rows:
        if len(cells) > len(heads):
            raise BadRequest(
                f"Line {line} of {place} has {len(cells)} cells and the first row {len(heads)}; put quotes around a "
                f"cell that holds {'a tab' if mark == chr(9) else repr(mark)}."
            )
    return Table(place, heads, tuple(rows))


def decoded(content: bytes, place: Path, what: str) -> str:
    """The text of a file in UTF-8, with or without a mark.

    Raises:
        BadRequest: it is none; the message names the line.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = content.count(b"\n", 0, e.start) + 1
        raise BadRequest(
            f"{place} cannot be read as {what}: line {line} has the byte 0x{content[e.start]:02x}, which is no UTF-8 "
            "(it may be Latin-1 or UTF-16). Save the file as UTF-8."
        ) from e
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise BadRequest(f"{place} cannot be read as {what}: line {line} holds a null character. Give a file in UTF-8.")
    return text


def _width(text: str, mark: str) -> int:
    """How many cells a separator makes of the first row that is not empty."""
    try:
        return len(next(filter(any, csv.reader(StringIO(text, newline=""), delimiter=mark, skipinitialspace=True)), ()))
    except csv.Error:
        return 0


def _cells(text: str, mark: str, place: Path, what: str) -> list[tuple[int, tuple[str, ...]]]:
    reader = csv.reader(StringIO(text, newline=""), delimiter=mark, skipinitialspace=True, strict=True)
    try:
        rows = [(reader.line_num, tuple(cell.strip() for cell in row)) for row in reader]
    except csv.Error as e:
        raise BadRequest(f"Line {reader.line_num} of {place} is not {what}: {e}. Quotes must be closed.") from e
    return [(line, cells) for line, cells in rows if any(cells)]
