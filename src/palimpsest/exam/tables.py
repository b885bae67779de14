"""Tables in Markdown: rows of cells, columns that know how to show a summary, the section of a study."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from palimpsest.core import catalog
from palimpsest.exam.case import Case, Exam, Records
from palimpsest.exam.judged import refused, worked

Columns = Mapping[str, Callable[[Any], str]]  # heading -> how a summary, or a system's records, are shown below it


def row(cells: Iterable[str]) -> str:
    """One row; a cell stays in its place whatever it holds."""
    return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A whole table."""
    return "\n".join([row(heads), "|---" * len(heads) + "|", *map(row, rows)]) + "\n"


def shown(columns: Columns, of: Any) -> list[str]:
    """The cells of one row."""
    return [show(of) for show in columns.values()]


def study(exam: Exam, by: Records) -> list[str]:
    """The section of a study: its text and a row for each system."""
    rows = []
    for system, records in by.items():
        words = [f"it refuses: {refused(records)}", *[""] * (len(exam.columns) - 1)]
        rows.append([called(system), *(shown(exam.columns, records) if worked(by, system) else words)])
    return [text(exam.module().__file__ or "", exam.cases[0]), table(["system", *exam.columns], rows)]


class _Words(tuple):
    def __str__(self) -> str:
        return ", ".join(self)


def text(module: str, case: Case, **more: Any) -> str:
    """The Markdown beside a module's file, with a case's fields filled in: words with commas between, shares in %."""
    fields = {k: _Words(v) if isinstance(v, tuple) else v for k, v in case.items()}
    filled = Path(module).with_suffix(".md").read_text(encoding="utf-8").format(**fields, **more)
    return re.sub(r"(?<=\d)%", " %", filled)


def called(system: str) -> str:
    """A system by its paper's name, or a stand-in."""
    return f"{catalog.find(system).card.name} `{system}`" if "/" in system else f"*{system}*"


def number(x: float | None) -> str:
    """Three figures or so; "" for what is not known."""
    if x is None or x != x:
        return ""
    return f"{x:.1f}" if abs(x) >= 10 else f"{x:.2f}" if abs(x) >= 0.1 or x == 0 else f"{x:.3f}"
