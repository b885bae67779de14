"""palimpsest audit"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from palimpsest.cli.options import Loading, Looking, held_out, look, say
from palimpsest.core.errors import BadRequest


@dataclass(frozen=True, kw_only=True)
class Audit(Loading, Looking):
    """Measure what changed between two models, whoever edited them. Writes receipt.json and receipt.html."""

    before: str
    """The untouched model."""
    after: str
    """The edited model, or a patch for the untouched one."""
    concept: str = ""
    """What a generator's edit was about: names with commas between, or a CSV file (columns name, kind, prompts)."""
    keep: str = ""
    """What should have stayed; the model's own neighbours where not given."""
    kind: Literal["identity", "object", "class", "attribute", "style", "domain"] = "object"
    """What sort of thing the concept is."""
    data: str = ""
    """For a classifier: what it learned from."""
    forget: str = ""
    """For a classifier: what was to be forgotten: class:cat, identity:s7 or samples:list.csv."""
    test: str = ""
    """For a classifier: data that it never saw; where the data have a part called test, that part."""
    size: int | None = None
    """For a classifier: side in pixels to resize pictures to."""
    oracle: str = ""
    """A model that never saw the concept, to compare with; several, for a classifier, with commas between."""
    out: Path = Path("audit")
    """Folder for the results."""
    plan: Annotated[bool, tyro.conf.arg(aliases=["--dry-run"])] = False
    """Print the plan, what it can show, what a change of 2 points would need, and the minutes; then stop."""
    resume: bool = False
    """Go on with the pictures that an interrupted audit left in the out folder."""
    resurfacing: bool = False
    """Also try to bring the concept back, by fine-tuning and by learnt words; takes minutes, prints its budget."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest import run
        from palimpsest.probes.attempt import Budget
        from palimpsest.progress import bars

        if bool(self.concept) == bool(self.data and self.forget):
            raise BadRequest("Give --concept for a generator, or --data and --forget for a classifier.")
        if self.data:
            return self._classifier(command)
        host = run.load(self.before, device=self.device, dtype=self.dtype)
        request = run.request(host, self.concept, keep=self.keep, kind=self.kind)
        budget = Budget(sample_steps=self.sample_steps, guidance=self.guidance) if self.resurfacing else None
        planned = run.plan(host, request, look(self))
        print(run.forecast(host, request, planned=planned, oracle=bool(self.oracle), resurfacing=budget))
        if self.plan:
            return 0
        with bars() as progress:
            receipt = run.audit(
                host, self.after, request, out=self.out, look=look(self), planned=planned, command=command,
                progress=progress, resume=self.resume, resurfacing=budget,
                oracle=run.load(self.oracle, device=self.device, dtype=self.dtype) if self.oracle else None,
            )  # fmt: skip
        say(receipt)
        return 0

    def _classifier(self, command: str) -> int:
        from palimpsest import run
        from palimpsest.core.host import Classifier
        from palimpsest.data.forget import ForgetRequest
        from palimpsest.data.read import aligned, read
        from palimpsest.receipt.classifier import audit_classifier

        asked, data = ForgetRequest.parse(self.forget), read(self.data, size=self.size)
        host = run.load(self.before, device=self.device, dtype=self.dtype, labels=data.classes)
        if not isinstance(host, Classifier):
            raise BadRequest(f"{host.name} is no classifier; --data and --forget audit one. Give --concept instead.")
        test = held_out(self.test, self.data, size=self.size)
        say(
            audit_classifier(
                host,
                run.edited(host, self.after),
                aligned(data, host.labels, host.name),
                asked,
                test=None if test is None else aligned(test, host.labels, host.name),
                retrained=[run.load(n, device=self.device, dtype=self.dtype) for n in self.oracle.split(",") if n],
                out=self.out,
                command=command,
            )
        )
        return 0
