"""palimpsest audit"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from palimpsest.cli import options
from palimpsest.cli.options import Learning, Looking, Reading, Working, refuse_overwriting, request_about, say
from palimpsest.cli.terminal import tell
from palimpsest.core.errors import BadRequest

WRITTEN = ("receipt.json", "receipt.html")
ABOUT_PICTURES = ("remove", "masks", "truth")


@dataclass(frozen=True, kw_only=True)
class Audit(Learning, Looking, Working, Reading):
    """Measure what changed between two models, or in pictures, whoever edited them. Writes receipt.json and .html.

    Examples:
      palimpsest audit --before tiny/sd --after no-star/patch.safetensors --concept star --out audit
      palimpsest audit --before tiny/sd --after lora.safetensors --concept sks --images photos --like dog --dry-run
      palimpsest audit --before my-classifier --after changed --data photos --forget class:cat --dry-run
      palimpsest audit --before photos --after edited-elsewhere --concept glasses --judge my-classifier
    """

    before: options.Model
    """The untouched model; or the folder of pictures before they were edited."""
    after: options.Model
    """The edited model; or a patch for the untouched one, or another program's embedding or LoRA; or the same pictures
    after the edit, by their names."""
    concept: options.Words = ""
    """What edited pictures were to show, or what a generator's edit was about: names with commas between, or
    a CSV file (columns name, kind, prompts)."""
    keep: options.Words = ""
    """What should have stayed; the model's own neighbours where not given; "none": nothing."""
    kind: options.Kind | None = None
    """What sort of thing the concept is; where not given, as with erase."""
    images: Annotated[tuple[str, ...], arg(metavar="PICTURES ...")] = ()
    """Where the concept is a newcomer that the edited model was taught: pictures of it, as with insert. Then it should
    be there afterwards, like them, and nothing else changed."""
    like: options.Words = ""
    """What the newcomer is one of, which the untouched model is asked for in its place."""
    remove: options.Words = ""
    """For pictures: what they were to lose."""
    masks: options.OptionalFolder = None
    """For pictures: a folder of masks by their names; white may change, and the rest is compared pixel by pixel."""
    truth: options.OptionalFolder = None
    """For pictures: a folder with them as they should have become."""
    data: options.Data = ""
    """For a classifier: what it learned from."""
    forget: options.Forget = ""
    """For a classifier: what was to be forgotten: class:cat, identity:s7 or samples:list.csv."""
    oracle: options.Models = ()
    """Models that never saw the concept or the samples, to compare with; a generator takes one."""
    out: options.Folder = Path("audit")
    """Folder for the results."""
    plan: Annotated[bool, arg(aliases=["--dry-run"])] = False
    """Print what would be looked at, what it can show, what a change of 2 points would need, the minutes; then stop."""
    resume: bool = False
    """Go on with the pictures that an interrupted audit left in the out folder."""
    overwrite: bool = False
    """Replace results that are in the out folder already."""
    accept_chance: bool = False
    """Go on also where a classifier reads its own data no better than by chance."""
    resurfacing: bool = False
    """Also try to bring the concept back, by fine-tuning and by learnt words; takes minutes, prints its budget."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest.core.trace import Trace
        from palimpsest.progress import bars
        from palimpsest.run.edit_receipts import are_pictures

        if not self.data and are_pictures(self.before):
            return self._pictures(command)
        self._refuse(set(ABOUT_PICTURES), "pictures")
        if bool(self.concept) == bool(self.data and self.forget) and not (self.concept and self.data):
            raise BadRequest("Give --concept for a generator, or --data and --forget for a classifier.")
        if not self.plan:
            refuse_overwriting(self.out, WRITTEN, self.overwrite, self.resume)
        if self.checkpointing and not self.resurfacing:
            raise BadRequest("An audit trains nothing without --resurfacing; leave out --checkpointing.")
        case, after = self._generator() if self.concept else self._classifier()
        with closing(case):
            case.check()
            if not self.plan:
                case.begin()
            tell(case.forecast(None))
            if self.plan:
                return 0
            with bars() as progress:
                trace = Trace(progress=progress)
                receipt = case.audit(after, out=self.out, resume=self.resume, command=command, trace=trace)
        say(receipt)
        return 0

    def _pictures(self, command: str) -> int:
        """Pictures before and after an edit of any tool; no model is loaded but the judges."""
        from palimpsest.run.edit_receipts import audit_pictures

        used = {"before", "after", "concept", "keep", "judge", "size", "out", "overwrite", *ABOUT_PICTURES}
        self._refuse({f.name for f in fields(self)} - used, "models; --before is a folder of pictures")
        refuse_overwriting(self.out, WRITTEN, self.overwrite)
        keep = [name.strip() for name in self.keep.split(",") if name.strip()]
        receipt = audit_pictures(
            self.before, self.after, to=self.concept, remove=self.remove, judges=self.judge, keep=keep,
            masks=self.masks, truth=self.truth, size=self.size, out=self.out, command=command,
        )  # fmt: skip
        say(receipt)
        return 0

    def _edited(self, host: Any) -> Any:
        """The edited model or the patch; None where it is not needed."""
        from palimpsest import run

        run.refuse_other(host, self.after, download=self.download)
        if self.plan:
            return None
        after = run.edited(self.after, host, load=self.load)
        for sentence in run.unlike(host, after):
            tell(sentence)
        return after

    def _generator(self) -> tuple[Any, Any]:
        from palimpsest import run
        from palimpsest.core.patch import Patch
        from palimpsest.probes.attempt import Budget

        self._refuse(
            {"data", "forget", "accept_chance", *(f.name for f in fields(Reading))}
            - ({"skip_unreadable"} if self.images else set()),  # which reads a newcomer's pictures as well
            "a classifier; --concept a generator",
        )
        host = self.load(self.before)
        if self.images or self.like:
            return self._newcomer(host)
        request = request_about(host, self.concept, keep=self.keep, kind=self.kind)
        budget = Budget(sample_steps=self.sample_steps, guidance=self.guidance) if self.resurfacing else None
        oracles = self.load_all(self.oracle)
        after = self._edited(host)
        case = run.case(
            host, request, look=self.look(), oracles=oracles, resurfacing=budget, workers=self.workers, ray=self.ray,
            edited=None if isinstance(after, Patch) else after,
        )  # fmt: skip
        return case, after

    def _newcomer(self, host: Any) -> tuple[Any, Any]:
        from palimpsest.core.patch import Patch
        from palimpsest.run import inserting

        if self.resurfacing or not (self.images and self.like):
            raise BadRequest(
                "An audit of a newcomer takes --images, pictures of it, and --like, what it is one of; "
                "--resurfacing is about what was erased."
            )
        brought = inserting.introduce(
            host, self.concept, self.images, like=self.like, kind=self.kind, keep=self.keep,
            skip_unreadable=self.skip_unreadable,
        )  # fmt: skip
        for line in brought.told:
            tell(line)
        after = self._edited(host)
        case = inserting.NewcomerCase(
            host=host, asked=brought.request, pictures=brought.references, newcomers=brought.newcomers,
            look=self.look(), oracles=self.load_all(self.oracle), workers=self.workers, ray=self.ray,
            edited=None if isinstance(after, Patch) else after,
        )  # fmt: skip
        return case, after

    def _classifier(self) -> tuple[Any, Any]:
        from palimpsest import run
        from palimpsest.core.host import Classifier
        from palimpsest.data.forget import ForgetRequest

        drawn = {
            "images",
            "like",
            "keep",
            "kind",
            "resume",
            "resurfacing",
            *(f.name for kind in (Looking, Working) for f in fields(kind)),
        }
        self._refuse(drawn, "a generator; --data and --forget a classifier")
        asked = ForgetRequest.parse(self.forget)
        host, data, test = self.samples(self, self.before, self.data)
        if not isinstance(host, Classifier):
            raise BadRequest(f"{host.name} is no classifier; --data and --forget audit one. Give --concept instead.")
        oracles = self.load_all(self.oracle)
        case = run.case(host, asked, data=data, test=test, oracles=oracles, accept_chance=self.accept_chance)
        return case, self._edited(host)

    def _refuse(self, names: set[str], whose: str) -> None:
        """Raises BadRequest where an option was given that this kind of audit would leave unused."""
        given = [f.name for f in fields(self) if f.name in names and getattr(self, f.name) != f.default]
        if given:
            raise BadRequest(f"--{given[0].replace('_', '-')} is about the audit of {whose}.")
