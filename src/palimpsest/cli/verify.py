"""palimpsest verify"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from tyro.conf import Positional

from palimpsest.cli import options
from palimpsest.cli.options import Reading
from palimpsest.cli.terminal import tell
from palimpsest.core.errors import BadRequest


@dataclass(frozen=True, kw_only=True)
class Verify(Reading):
    """Check a receipt: hashes, numbers and, if asked, the pictures drawn again.

    Exit code 0: all that was asked for held; 1: something differs; 3: something could not be checked.

    Examples:
      palimpsest verify no-star/receipt.json --remeasure sample
      palimpsest verify no-cat/receipt.json --data photos --remeasure all
    """

    receipt: Positional[options.ReceiptFile]
    """A receipt.json."""
    remeasure: Literal["none", "sample", "all"] = "none"
    """How many pictures to draw and judge again; a classifier is asked about its samples, for all it relearns too."""
    public_key: options.OptionalFile = None
    """Of who is said to have signed it; the signature beside the receipt is then checked."""
    data: options.Data = ""
    """To ask a classifier again: what it learned from."""
    forget: options.Forget = ""
    """Likewise: the request, where it lists single samples: samples:list.csv."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest.receipt.finding import exit_code, report
        from palimpsest.receipt.verify import verify

        findings = verify(self.receipt, remeasure=self.remeasure, public_key=self.public_key, subject=self._subject())
        tell(report(findings))
        return exit_code(findings)

    def _subject(self) -> Any:
        """A classifier with the samples that the options name; None where they name none."""
        if not self.data:
            about = {"forget", *(f.name for f in fields(Reading))}
            given = [f.name for f in fields(self) if f.name in about and getattr(self, f.name) != f.default]
            if given:
                option = given[0].replace("_", "-")
                raise BadRequest(f"--{option} says more about --data, which is missing: give it too.")
            return None
        if self.remeasure == "none":
            raise BadRequest("--data is what a classifier is asked about: give --remeasure sample or all too.")
        from palimpsest.data.forget import ForgetRequest
        from palimpsest.data.read import read
        from palimpsest.receipt.subjects.classifier import Classifier

        return Classifier(
            data=read(self.data, split=self.split, size=self.size, skip_unreadable=self.skip_unreadable),
            test=options.held_out(self.test, self.data, size=self.size, skip_unreadable=self.skip_unreadable),
            asked=ForgetRequest.parse(self.forget) if self.forget else None,
        )
