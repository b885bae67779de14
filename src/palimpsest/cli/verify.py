"""palimpsest verify"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from tyro.conf import Positional

from palimpsest.cli import options
from palimpsest.cli.options import Loading, Reading
from palimpsest.cli.terminal import tell
from palimpsest.core.errors import BadRequest


@dataclass(frozen=True, kw_only=True)
class Verify(Loading, Reading):
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
    before: options.Model = ""
    """The untouched model, or the pictures before, where they do not lie where the receipt says; a classifier of your
    own with --factory."""
    after: options.Model = ""
    """Likewise the edited model, where the receipt is not about a patch, or the pictures after."""
    data: options.Data = ""
    """To ask a classifier again: what it learned from."""
    forget: options.Forget = ""
    """Likewise: the request, where it lists single samples: samples:list.csv."""
    reference: options.OptionalFolder = None
    """To measure a generator's distances again: the pictures that it was compared with."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest.receipt.finding import exit_code, report
        from palimpsest.receipt.schema import load
        from palimpsest.receipt.verify import verify

        stated = load(self.receipt)
        before, subject = self._side(self.before, stated) if self.before and not self.data else None, None
        if self.data:
            before, subject = self._asked_again(self.before or stated["base"]["name"])
        else:
            self._refuse_idle()
            subject = self._compared_again(stated["plan"])
        findings = verify(
            self.receipt,
            remeasure=self.remeasure,
            before=before,
            after=self._side(self.after, stated) if self.after else None,
            load=self.load,
            public_key=self.public_key,
            subject=subject,
        )
        tell(report(findings))
        return exit_code(findings)

    def _side(self, name: str, stated: Mapping[str, Any]) -> Any:
        """A model, or the pictures that a receipt about pictures names."""
        if stated["edited"]["kind"] != "pictures":
            return self.load(name)
        from palimpsest.data.picture_folders import PictureFolder

        return PictureFolder.of(name).paired(stated["plan"]["names"])

    def _refuse_idle(self) -> None:
        """Raises BadRequest where an option says more about data that are not given."""
        about = {"forget", *(f.name for f in fields(Reading))}
        given = [f.name for f in fields(self) if f.name in about and getattr(self, f.name) != f.default]
        if given:
            option = given[0].replace("_", "-")
            raise BadRequest(f"--{option} says more about --data, which is missing: give it too.")

    def _compared_again(self, plan: Mapping[str, Any]) -> Any:
        """The subject with the reference pictures that an option names; None where none does."""
        if self.reference is None:
            return None
        stated = plan.get("reference")
        if not stated or self.remeasure != "all":
            raise BadRequest(
                "--reference is for --remeasure all of a receipt whose plan compares pictures with a folder's; leave "
                "it out."
            )
        from palimpsest.data.photos import Photos
        from palimpsest.receipt.subjects.generator import Generator

        return Generator(reference=Photos(self.reference, size=stated["size"]))

    def _asked_again(self, model: str) -> tuple[Any, Any]:
        """The classifier, and the samples that the options name."""
        if self.remeasure == "none":
            raise BadRequest("--data is what a classifier is asked about: give --remeasure sample or all too.")
        from palimpsest.data.forget import ForgetRequest
        from palimpsest.receipt.subjects.classifier import Classifier

        host, data, test = self.samples(self, model, self.data)
        asked = ForgetRequest.parse(self.forget) if self.forget else None
        return host, Classifier(data=data, test=test, asked=asked)
