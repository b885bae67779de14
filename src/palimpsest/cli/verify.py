"""palimpsest verify"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from palimpsest.cli.options import held_out
from palimpsest.core.errors import BadRequest


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check a receipt: hashes, numbers and, if asked, the pictures drawn again. Exit code 1 where something differs."""

    receipt: Positional[Path]
    """A receipt.json."""
    remeasure: Literal["none", "sample", "all"] = "none"
    """How many pictures to draw and judge again; a classifier is asked about its samples, for all it relearns too."""
    public_key: Path | None = None
    """Of who is said to have signed it; the signature beside the receipt is then checked."""

    data: str = ""
    """To ask a classifier again: what it learned from."""
    test: str = ""
    """Likewise: data that it never saw; where the data have a part called test, that part."""
    forget: str = ""
    """Likewise: the request, where it lists single samples: samples:list.csv."""
    size: int | None = None
    """Likewise: side in pixels to resize pictures to."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest.receipt.verify import verify

        findings = verify(self.receipt, remeasure=self.remeasure, public_key=self.public_key, asked=self._asked())
        for finding in findings:
            print(finding)
        return int(any(not f.ok for f in findings))

    def _asked(self) -> Any:
        """The samples that the options name; None where they name none."""
        if not self.data:
            if self.test or self.forget:
                raise BadRequest("--test and --forget say more about --data, which is missing: give it too.")
            return None
        if self.remeasure == "none":
            raise BadRequest("--data is what a classifier is asked about: give --remeasure sample or all too.")
        from palimpsest.data.forget import ForgetRequest
        from palimpsest.data.read import read
        from palimpsest.receipt.reask import Asked

        return Asked(
            data=read(self.data, size=self.size),
            test=held_out(self.test, self.data, size=self.size),
            forget=ForgetRequest.parse(self.forget) if self.forget else None,
        )
