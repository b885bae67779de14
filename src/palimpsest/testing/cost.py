"""What a verb costs in lines outside its systems: `python -m palimpsest.testing.cost`.

A verb is its declaration, the subject of its receipts and its exam; each is found by its name, and nothing else knows
of it. A subject that verbs share counts for each of them.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

from palimpsest.core import catalog


def files_of(verb: str) -> dict[str, Path]:
    """The files of a verb beside its systems: what each is for -> where it lies."""
    subject, ours = catalog.verbs()[verb].subject, catalog.ROOT
    places = {
        "declaration": catalog.source_of(catalog.package_of(verb)),
        "subject": _file(ours / "receipt" / "subjects" / f"{subject}.py", "palimpsest.subjects", subject),
        "exam": _file(ours / "exam" / "verbs" / f"{verb}.py", "palimpsest.exams", verb),
    }
    return {what: path for what, path in places.items() if path is not None}


def _file(ours: Path, group: str, name: str) -> Path | None:
    """Our own file, or the module that another package declares."""
    if ours.is_file():
        return ours
    return next((catalog.source_of(p.module) for p in entry_points(group=group) if p.name == name), None)


def lines_of(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n")


def table() -> list[str]:
    """A line for each installed verb."""
    told = []
    for verb in catalog.verbs():
        counts = {what: lines_of(path) for what, path in files_of(verb).items()}
        systems = sum(id_.startswith(f"{verb}/") for id_ in catalog.entries())
        parts = ", ".join(f"{what} {n}" for what, n in counts.items())
        told.append(f"{verb:10} {sum(counts.values()):5} lines beside its {systems} systems: {parts}")
    return told


if __name__ == "__main__":
    print("\n".join(table()))
