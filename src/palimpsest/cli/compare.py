"""palimpsest compare"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from palimpsest.cli import options
from palimpsest.cli.options import refuse_overwriting
from palimpsest.cli.terminal import tell
from palimpsest.core.errors import BadRequest


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Put receipts side by side on one page: plots, intervals, same-seed pictures; with JSON and CSV.

    Examples:
      palimpsest compare no-star no-star-esd --out compared
    """

    receipts: Annotated[Positional[tuple[Path, ...]], arg(metavar="FOLDER ...")] = ()
    """Folders of two or more receipts about one target in one model."""
    exam: options.OptionalFolder = None
    """Folder of exam results: compare all systems in it instead of receipts."""
    out: options.Folder = Path("compared")
    """Folder for the page, the JSON and the CSV."""
    overwrite: bool = False
    """Replace a comparison that is in the out folder already."""

    def run(self, rest: list[str], command: str) -> int:
        if self.exam is not None and self.receipts:
            raise BadRequest("Give receipts or --exam, not both.")
        name = "compare" if self.exam is None else "systems"
        refuse_overwriting(self.out, (f"{name}.html", f"{name}.json", f"{name}.csv"), self.overwrite)
        if self.exam is not None:
            from palimpsest.exam import plots

            written = plots.write(self.exam, self.out)
        else:
            from palimpsest.receipt.compare import compare

            written = compare(self.receipts, self.out)
        for path in written:
            tell(str(path))
        return 0
