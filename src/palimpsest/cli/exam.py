"""palimpsest exam"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True, kw_only=True)
class Exam:
    """Run systems on the fixed work of their family and write exam/results; only what changed runs again."""

    what: Positional[str] = "erase"
    """A family (erase, unlearn), one system (erase/uce), the comparisons (studies, or studies/attack), or "table":
    write the table of the results alone."""
    results: Path = Path("exam/results")
    """Folder of the results."""
    again: bool = False
    """Ignore cached results."""
    dry_run: bool = False
    """Print which runs are due, then stop."""
    docs: Path | None = Path("docs/systems.md")
    """The table generated from the results; the page of plots goes into the folder plots beside it."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest.exam import plots, studies, table, unlearn, work
        from palimpsest.progress import bars

        family, _, name = self.what.partition("/")
        compared = [name] if name else list(studies.STUDIES)
        if self.dry_run:
            if family == "studies":
                lines = [line for s in compared for line in studies.forecast(s, self.results, again=self.again)]
            elif family == "table":
                lines = ["Nothing is due: the table is written from the results as they are."]
            else:
                foretell = unlearn.forecast_unlearn if family == "unlearn" else work.forecast
                lines = foretell(self.what, self.results, again=self.again)
            print("\n".join(lines))
            return 0
        with bars() as progress:
            if family == "studies":
                for study in compared:
                    studies.run(study, self.results, again=self.again, progress=progress)
            elif family == "unlearn":
                unlearn.run_unlearn(self.what, self.results, again=self.again, progress=progress)
            elif self.what != "table":
                work.run(self.what, self.results, again=self.again, progress=progress)
        if self.docs is not None:
            table.write(self.results, self.docs)
            print(self.docs)
            if any((self.results / "erase").glob("*.json")):
                print(plots.write(self.results, self.docs.parent / "plots")[0])
        return 0
