"""Tables in Markdown: rows of cells, columns that know how to show a summary, the section of a study."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from palimpsest.core import catalog
from palimpsest.exam.case import Exam, Records
from palimpsest.exam.rates import interval, percent, rate, refused, worked
from palimpsest.ops import statistics
from palimpsest.ops.statistics import Interval

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
    for system in by:
        words = [f"it refuses: {refused(by[system])}", *[""] * (len(exam.columns) - 1)]
        cells = [show(system, by) for show in exam.columns.values()] if worked(by, system) else words
        rows.append([called(system), *cells])
    said = {**vars(exam.module()), **exam.cases[0], "seeds": len(exam.seeds)}
    return [text(exam.module().__file__ or "", said), table(["system", *exam.columns], rows)]


def shares(name: str) -> Callable[[str, Records], str]:
    """A column: the rate of ones among the bits that a system's records hold under a name."""
    return lambda system, by: percent(rate(by[system], name))


def means(name: str, form: Any = "{:.1f}".format) -> Callable[[str, Records], str]:
    """A column: the mean of the numbers that a system's records hold under a name, with Student's interval."""

    def show(system: str, by: Records) -> str:
        values = [r[name] for r in by[system] if name in r]
        mean = statistics.mean(values) if values else Interval(math.nan, math.nan, math.nan)
        return form(mean.value) if "/" not in system and mean.low == mean.high else interval(mean, form)

    return show


class _Words(tuple):
    def __str__(self) -> str:
        return ", ".join(self)


def text(module: str, said: Mapping[str, Any]) -> str:
    """The Markdown beside a module's file, with fields filled in: words with commas between, shares in %."""
    fields = {k: _Words(v) if isinstance(v, tuple) else v for k, v in said.items()}
    filled = Path(module).with_suffix(".md").read_text(encoding="utf-8").format_map(fields)
    return re.sub(r"(?<=\d)%", " %", filled)


def called(system: str) -> str:
    """A system by its paper's name, or a stand-in."""
    return f"{catalog.find(system).card.name} `{system}`" if "/" in system else f"*{system}*"


def number(x: float | None) -> str:
    """Three figures or so; "" for what is not known."""
    if x is None or x != x:
        return ""
    return f"{x:.1f}" if abs(x) >= 10 else f"{x:.2f}" if abs(x) >= 0.1 or x == 0 else f"{x:.3f}"
