"""The exam's results as a page of plots: every system on the same work, forgetting against its price."""

from __future__ import annotations

from pathlib import Path

from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest
from palimpsest.exam.summary import Summary, read, summarise
from palimpsest.exam.work import CASES
from palimpsest.receipt.compare import Row, Section
from palimpsest.receipt.compare import write as write_page


def write(results: Path, out: Path, family: str = "erase", *, name: str = "systems") -> tuple[Path, Path, Path]:
    """Writes systems.html, systems.json and systems.csv: all concepts of a family together, then each of its own.

    Raises:
        BadRequest: the family has no results.
    """
    found = read(results, family)
    if not found:
        raise BadRequest(f"There are no results of {family} in {results}; run palimpsest exam {family} first.")
    sections = []
    for concept in ("", *(c.concept for c in CASES[family])):
        pairs = [(system, summarise(system, cases, concept)) for system, cases in found.items()]
        rows = tuple(_row(system, s) for system, s in pairs if s is not None)
        if rows:
            sections.append(Section(title=concept or f"Systems that {family}: all concepts", rows=rows))
    return write_page(sections, out, name=name, alone=False)


def _row(system: str, s: Summary) -> Row:
    return Row(
        name=catalog.find(system).card.name,
        target=s.target,
        before=s.before,
        neighbours=s.neighbours,
        unrelated=s.unrelated,
        seconds=s.seconds,
        forwards=s.forwards,
        peak_bytes=s.peak_bytes,
        note=f"{system}, {s.runs} runs",
    )
