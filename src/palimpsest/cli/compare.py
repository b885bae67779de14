"""palimpsest compare"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from palimpsest.core.errors import BadRequest


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Put receipts side by side on one page: plots, intervals, same-seed pictures; with JSON and CSV."""

    receipts: Positional[tuple[Path, ...]] = ()
    """Folders of two or more receipts about one target in one model."""
    exam: Path | None = None
    """Folder of exam results: compare all systems in it instead of receipts."""
    out: Path = Path("compared")
    """Folder for the page, the JSON and the CSV."""

    def run(self, rest: list[str], command: str) -> int:
        if self.exam is not None:
            from palimpsest.exam import plots

            if self.receipts:
                raise BadRequest("Give receipts or --exam, not both.")
            written = plots.write(self.exam, self.out)
        else:
            from palimpsest.receipt.compare import compare

            written = compare(self.receipts, self.out)
        for path in written:
            print(path)
        return 0
