"""palimpsest audit"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from palimpsest.cli.options import Loading, Looking, look, say


@dataclass(frozen=True, kw_only=True)
class Audit(Loading, Looking):
    """Measure what changed between two models, whoever edited them. Writes receipt.json and receipt.html."""

    before: str
    """The untouched model."""
    after: str
    """The edited model, or a patch for the untouched one."""
    concept: str
    """What the edit was about: names with commas between, or a CSV file with the columns name, kind and prompts."""
    keep: str = ""
    """What should have stayed; the model's own neighbours where not given."""
    kind: Literal["identity", "object", "class", "attribute", "style", "domain"] = "object"
    """What sort of thing the concept is."""
    oracle: str = ""
    """A model that never saw the concept, to compare with."""
    out: Path = Path("audit")
    """Folder for the results."""
    plan: Annotated[bool, tyro.conf.arg(aliases=["--dry-run"])] = False
    """Print the plan, what it can show, what a change of 2 points would need, and the minutes; then stop."""
    resume: bool = False
    """Go on with the pictures that an interrupted audit left in the out folder."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest import run
        from palimpsest.progress import bars

        host = run.load(self.before, device=self.device, dtype=self.dtype)
        request = run.request(host, self.concept, keep=self.keep, kind=self.kind)
        print(run.forecast(host, request, look=look(self), oracle=bool(self.oracle)))
        if self.plan:
            return 0
        with bars() as progress:
            receipt = run.audit(
                host, self.after, request, out=self.out, look=look(self), command=command, progress=progress,
                resume=self.resume,
                oracle=run.load(self.oracle, device=self.device, dtype=self.dtype) if self.oracle else None,
            )  # fmt: skip
        say(receipt)
        return 0
