"""Files that a page carries inside itself, to be saved from it."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_COLUMNS = (
    "name", "concept", "role", "evaluator", "value", "low", "high", "before", "floor", "p", "n", "unit", "verdict",
)  # fmt: skip
_CHANGE = ("value", "low", "high")
INSIDE = 1_000_000  # characters of a receipt that a page carries; longer ones lie beside it
_KINDS = {"json": "application/json", "csv": "text/csv"}


def link(name: str, text: str) -> str:
    """A data: link that holds a file."""
    return f"data:{_KINDS[name.rpartition('.')[2]]};base64,{base64.b64encode(text.encode()).decode()}"


def table(rows: Iterable[Sequence[Any]]) -> str:
    """CSV text. A word that a spreadsheet would run as a formula gets an apostrophe before it; None is empty."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    for row in rows:
        out.writerow(
            ["" if c is None else "'" + c if isinstance(c, str) and c[:1] in tuple("=+-@\t") else c for c in row]
        )
    return text.getvalue()


def files(data: Mapping[str, Any]) -> dict[str, str]:
    """What a receipt's page offers: the receipt itself, on one line, unless it would fill the page, and its readings as
    a table."""
    rows: list[list[Any]] = [[*_COLUMNS, *(f"change_{k}" for k in _CHANGE)]]
    for r in data["readings"]:
        change = r["change"]
        limits = [None] * len(_CHANGE) if change is None else [change[k] for k in _CHANGE]
        rows.append([*(r[c] for c in _COLUMNS), *limits])
    inside = {"receipt.json": text} if len(text := whole(data)) <= INSIDE else {}
    return {**inside, "readings.csv": table(rows)}


def whole(data: Mapping[str, Any]) -> str:
    """The receipt as JSON without spaces: the same content, and so the same seal, as receipt.json."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
