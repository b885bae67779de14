"""palimpsest exam"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from palimpsest.cli import options


@dataclass(frozen=True, kw_only=True)
class Exam:
    """Run systems on the fixed work of their verb and write exam/results; only what changed runs again.

    Examples:
      palimpsest exam erase/uce --dry-run
      palimpsest exam unlearn --workers 4 --results results --docs None
      palimpsest exam table
    """

    what: Annotated[Positional[str], arg(metavar="WHAT")] = "erase"
    """A verb (erase, unlearn), one system (erase/uce), the comparisons (studies, or studies/attack), "agreement": hold
    the ranks of systems against published ones, or "table": write the pages of the results alone."""
    results: options.Folder = Path("exam/results")
    """Folder of the results."""
    again: bool = False
    """Run also what is kept."""
    dry_run: bool = False
    """Print which runs are due, then stop."""
    workers: options.Count = 0
    """Processes at once, one thread each; 0: as many as there are cores."""
    ray: Annotated[str, arg(metavar="local|ADDRESS")] = ""
    """Run over Ray: on this machine, or in a cluster whose nodes see the same files."""
    docs: options.OptionalFolder = Path("docs/systems")
    """Folder of the pages generated from the results; the page of plots goes into the folder plots beside it; None: no
    pages."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest.exam import agreement, pages, plots, running
        from palimpsest.progress import bars

        if self.what == "agreement":
            print(agreement.page(self.results))
            return 0
        if self.dry_run:
            lines = ["Nothing is due: the pages are written from the results as they are."]
            if self.what != "table":
                lines = running.forecast(self.what, self.results, again=self.again, workers=self.workers)
            print("\n".join(lines))
            return 0
        if self.what != "table":
            with bars() as progress:
                how = {"again": self.again, "workers": self.workers, "ray": self.ray}
                running.run(self.what, self.results, **how, progress=progress)
        if self.docs is not None:
            print(pages.write(self.results, self.docs)[0])
            if any((self.results / "erase").glob("*.json")):
                print(plots.write(self.results, self.docs.parent / "plots")[0])
        return 0
