"""palimpsest verify"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check a receipt: hashes, numbers and, if asked, the pictures drawn again. Exit code 1 where something differs."""

    receipt: Positional[Path]
    """A receipt.json."""
    remeasure: Literal["none", "sample", "all"] = "none"
    """How many pictures to draw and judge again."""
    public_key: Path | None = None
    """Of who is said to have signed it; the signature beside the receipt is then checked."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest.receipt.verify import verify

        findings = verify(self.receipt, remeasure=self.remeasure, public_key=self.public_key)
        for finding in findings:
            print(finding)
        return int(any(not f.ok for f in findings))
