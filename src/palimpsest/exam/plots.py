"""The exam's results as a page of plots: every system on the same work, forgetting against its price."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest
from palimpsest.exam.verbs import erase
from palimpsest.exam.verbs.erase import Summary
from palimpsest.receipt.compare import Row, Section
from palimpsest.receipt.compare import write as write_page


def write(results: Path, out: Path, *, name: str = "systems") -> tuple[Path, Path, Path]:
    """Writes systems.html, systems.json and systems.csv of erasing: all concepts together, then each of its own.

    Raises:
        BadRequest: there are no results.
    """
    main = erase.summaries(results)
    if not main:
        raise BadRequest(f"There are no results of erase in {results}; run palimpsest exam erase first.")
    sections = []
    for concept in ("", *(c["concept"] for c in erase.CASES)):
        rows = tuple(_row(system, by[concept]) for system, by in main.items() if concept in by)
        if rows:
            sections.append(Section(title=concept or "Systems that erase: all concepts", rows=rows))
    return write_page(sections, out, name=name, alone=False)


def _row(system: str, s: Summary) -> Row:
    same = ("target", "before", "neighbours", "unrelated", "seconds", "forwards", "peak_bytes")
    measured: dict[str, Any] = {name: getattr(s, name) for name in same}
    return Row(name=catalog.find(system).card.name, note=f"{system}, {s.runs} runs", **measured)
