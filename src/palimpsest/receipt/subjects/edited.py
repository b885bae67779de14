"""Receipts about edited pictures: did they change as asked, and what else did?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.core import declared
from palimpsest.core.concept import Request
from palimpsest.core.errors import BadRequest, PalimpsestError
from palimpsest.core.reading import Reading
from palimpsest.core.trace import Trace
from palimpsest.data.picture_folders import PictureFolder
from palimpsest.ops import statistics
from palimpsest.probes.edits import ROW, EditPlan, Edits, collect
from palimpsest.probes.evaluators import Judge, judge
from palimpsest.probes.evidence import Probe, unkept
from palimpsest.probes.kept import KEPT, Kept
from palimpsest.probes.measured import GAIN, OUTSIDE, PERSON, RECONSTRUCTION, Gain, Outside, Person, Reconstruction
from palimpsest.probes.moved import MOVED, Moved
from palimpsest.receipt import edited_words
from palimpsest.receipt.document import evaluators_of
from palimpsest.receipt.finding import Finding, differs, lacking, same
from palimpsest.receipt.judges import loaded_again
from palimpsest.receipt.method import card_of
from palimpsest.receipt.readings import equal
from palimpsest.receipt.subject import Again, Pair, Rates, Section, Subject

SETTINGS = "settings.json"  # beside the receipt of edits that this program made
SAMPLE = 12  # pairs that are read again


@dataclass(frozen=True, kw_only=True)
class Edited(Subject):
    """Pictures before and after an edit.

    Args:
        plan: what was asked. judges: who reads them.
        beside: by name: "masks" (where a picture may differ, white), "rebuilt" (the same work with nothing asked),
            "truth" (as it should have become).
        method: who made the edits: method, name, parameters, seed; None: nobody knows. spent: what that took.
        folder: where the receipt lies; names of pictures are looked for there first.
    """

    plan: EditPlan | None = None
    judges: Sequence[Judge] = ()
    beside: Mapping[str, PictureFolder] = field(default_factory=dict)
    method: Mapping[str, Any] | None = None
    spent: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    name: ClassVar[str] = "edited"
    counted: ClassVar[str] = "pictures"
    sides: ClassVar[tuple[str, str]] = ("pictures before", "pictures after")
    kinds: ClassVar[tuple[str, ...]] = ("pictures",)
    probes: ClassVar[tuple[Probe, ...]] = (Moved(), Kept(), Person(), Outside(), Reconstruction(), Gain())
    roles: ClassVar[Mapping[str, tuple[str, str]]] = {
        "failed": ("Failures", "Not as asked, the person lost, or rebuilt with less than 20 dB."),
        "target": ("Edited", "Above, the picture before, below, after the edit."),
    }
    sections: ClassVar[tuple[Section, ...]] = (
        Section(title="as asked", form="figures"),
        Section(title="Pictures", form="pairs", note="As judges read them, brought to one size. Failures come first."),
        Section(
            title="Moved",
            readings=(MOVED,),
            note="In how many pictures a judge sees what was asked for. The ring is before, the dot after the edit "
            "with its 95 % interval.",
        ),
        Section(
            title="Kept",
            readings=(KEPT,),
            note="In how many pictures an attribute that was not to change is read as before. The ring is the "
            "rebuilt pictures, in which nothing was asked, the dot the edited ones.",
        ),
        Section(title="Person", readings=(PERSON,), note="Mean cosine with the person before; before: rebuilt."),
        Section(
            title="Pixels",
            readings=(OUTSIDE, RECONSTRUCTION, GAIN),
            note="Grey levels outside the region that may differ; how well pictures are rebuilt with nothing asked; "
            "and how much nearer they came to the truth, where somebody drew it.",
        ),
    )
    terms: ClassVar[tuple[tuple[str, str], ...]] = (
        ("Rebuilt", "The same work with nothing asked: what the way through the model alone does to a picture."),
        ("Interval", "95 %: Wilson's for rates, Tango's for paired changes, BCa bootstrap over pictures for means."),
        ("p", "McNemar's exact test on pairs; corrected over the attributes (Benjamini and Hochberg)."),
        ("Noise floor", "How far two sets of so many pictures lie apart by chance at the rate of the rebuilt ones."),
        ("Region", "Where a picture may differ: the mask that was given, or what the system says of its own edit."),
        ("Gain", "dB of the edit less dB of the picture before, both against the truth. 0: as good as left alone."),
    )
    compared: ClassVar[Mapping[str, str]] = {
        "before": "as asked before",
        "target": "as asked after",
        "neighbours": "other attributes, points",
        "unrelated": "unrelated, points",
        "n": "pictures",
        "y": "pictures that show what was asked",
        "said": "as asked",
        "x": "points lost of other attributes",
    }

    def collect(
        self, before: Any, after: Any, request: Request, *, folder: Path | None, resume: bool, trace: Trace
    ) -> Edits:
        assert self.plan is not None
        return collect(before, after, self.plan, self.judges, self.beside)

    def sources(self, before: Any) -> dict[str, str]:
        return {j.evaluator.name: j.source for j in self.judges}

    def made(self, evidence: Any) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        if self.method is None:
            return None, {}
        card = card_of(str(self.method["method"]))
        return {**self.method, **({} if card is None else {"card": card})}, dict(self.spent)

    @classmethod
    def kept(cls, data: Mapping[str, Any], vectors: Mapping[str, Tensor]) -> Edits:
        evaluators = evaluators_of(data)
        plan = declared.fitted(dict(data["plan"]), EditPlan, "the plan")
        measures = {**unkept(data["measures"], evaluators), **vectors}
        for path, rows in measures.items():
            if len(rows) != len(plan.names):
                raise ValueError(f"{path} has {len(rows)} rows, the plan {len(plan.names)} pictures")
        return Edits(plan=plan, measures=measures, evaluators=evaluators, cost=data["run"]["audit"])

    # -- checking ----------------------------------------------------------------------------------------

    def at(self, data: Mapping[str, Any], folder: Path) -> Edited:
        plan = declared.fitted(dict(data["plan"]), EditPlan, "the plan")
        return replace(self, plan=self.plan or plan, folder=folder)

    def loader(self, load: Callable[[str], Any]) -> Callable[[str], Any]:
        return self._opened

    def _opened(self, name: str) -> PictureFolder:
        """The plan's pictures of a folder that a receipt names."""
        assert self.plan is not None
        here = None if self.folder is None else self.folder / name
        there = PictureFolder.of(here if here is not None and here.exists() else name, name)
        return there.paired(self.plan.names)

    def ready(self, data: Mapping[str, Any], kept: Edits, before: Any) -> tuple[Edited | None, list[Finding]]:
        used, found = loaded_again(
            kept.evaluators, data["evaluators"], self.judges, lambda source: judge(source, kept.plan.keep)
        )
        beside: dict[str, PictureFolder] = {}
        for what, (name, stated) in kept.plan.beside.items():
            try:
                there = self.beside.get(what) or self._opened(name)
            except (PalimpsestError, OSError) as e:
                found.append(lacking(what, str(e), "plan"))
                continue
            now = there.fingerprint()
            if now == stated:
                beside[what] = there
                found.append(same(what, f"{name} {now[:12]}", "plan"))
            else:
                text = f"{name} is now {now[:12]}, the receipt is about {stated[:12]}"
                found.append(differs(what, text, "plan"))
        able = used is not None and len(beside) == len(kept.plan.beside)
        return (replace(self, judges=used, beside=beside) if able else None), found

    def again(self, kept: Edits, before: Any, after: Any, how: str, trace: Trace) -> Again:
        """Cost: 12 pairs read again, or all."""
        count = len(kept.plan.names)
        rows = list(range(count)) if how == "all" else sorted({i * count // SAMPLE for i in range(SAMPLE)})
        evidence = collect(before, after, kept.plan, self.judges, self.beside, rows)
        sets = dict.fromkeys((*evidence.gallery, ROW), rows)
        left = "" if how == "all" else f"{count - len(rows)} of {count} pairs" if count > len(rows) else ""
        return Again(evidence=evidence, rows=sets, readings=how == "all", left=left)

    @classmethod
    def checks(cls, data: Mapping[str, Any], evidence: Edits, folder: Path) -> list[Finding]:
        """The method, the model and the mark against the settings that were written beside the edits."""
        method, plan, path = data["method"], evidence.plan, folder / SETTINGS
        if method is None:
            named = bool(plan.model or plan.base)
            return [differs("plan", "a model is named, and no method", "plan")] if named else []
        if not path.is_file():
            return [lacking("method", f"there is no {SETTINGS} beside the receipt", "method")]
        held: dict[str, Any] = declared.read(path, dict, "settings of edits")
        due = {
            "method": held["method"]["method"], "parameters": held["method"]["parameters"], "seed": held["seed"],
            "model": held["model"], "base": held["base"], "marked": held["marked"],
            "name": method.get("card", {}).get("name", method.get("name")),
        }  # fmt: skip
        said = {**method, "model": plan.model, "base": plan.base, "marked": plan.marked}
        for key, value in due.items():
            if not equal(said.get(key), value):
                return [differs("method", f"{key} is {said.get(key)!r}, {SETTINGS} has {value!r}", "method", "plan")]
        return [same("method", f"as {SETTINGS} beside the receipt has it", "method")]

    # -- telling -----------------------------------------------------------------------------------------

    @classmethod
    def words(cls, readings: Sequence[Reading], request: Request, evidence: Edits) -> tuple[str, list[dict[str, str]]]:
        return edited_words.headline(readings, evidence.plan), edited_words.sentences(readings, evidence)

    @classmethod
    def figures(cls, readings: Sequence[Reading]) -> list[tuple[str, Reading]]:
        """What moved by the first judge, and the least kept attribute."""
        moved = [(r.concept, r) for r in readings if r.name == MOVED][:1]
        kept = sorted((r for r in readings if r.name == KEPT), key=lambda r: r.value)[:1]
        return [*moved, *((f"{r.concept} kept,", r) for r in kept)]

    @classmethod
    def wanted(cls, reading: Reading, evidence: Edits) -> bool:
        return reading.value > (reading.before or 0.0)

    @classmethod
    def facts(cls, evidence: Edits) -> list[tuple[str, str]]:
        plan = evidence.plan
        said = {None: "nobody said whether files are marked", True: "files say that a model made a part of them"}
        mark = said.get(plan.marked, "left out (--no-mark)")
        found = [("Wanted", plan.wanted), ("Read at", f"{plan.size} x {plan.size} pixels"), ("Mark", mark)]
        return [*found, *([("Drawn by", plan.model)] if plan.model else [])]

    @classmethod
    def prints(cls, evidence: Edits) -> list[tuple[str, str, str]]:
        plan = evidence.plan
        drawn = [("model that drew the edits", plan.model, plan.base)] if plan.base else []
        return [*drawn, *((what, name, sha256) for what, (name, sha256) in plan.beside.items())]

    @classmethod
    def pairs(cls, evidence: Edits) -> list[Pair]:
        """Failures first, worst first."""
        plan, failed, why = evidence.plan, evidence.failures(), edited_words.reasons(evidence)
        rows = [*failed, *(i for i in range(len(plan.names)) if i not in failed)]
        return [
            Pair(
                row=i,
                role="failed" if i in failed else "target",
                name=plan.names[i],
                reason=why[i],
                prompt=plan.asked[i] if plan.asked else f"{plan.names[i]}: {plan.wanted}",
                seed=None,
            )
            for i in rows
        ]

    @classmethod
    def rates(cls, evidence: Edits) -> Rates:
        judges = evidence.knowing()
        if not judges:
            raise BadRequest("no judge knows what was asked of the pictures, so there is nothing to compare")
        first, n = judges[0], len(evidence.plan.names)
        before, after = (statistics.wilson(int(evidence.shows(first, side).sum()), n) for side in ("before", "after"))
        same = [
            (evidence("before", first, "present").bool() == evidence("after", first, "present").bool())[:, c].all(1)
            for c in evidence.kinds(first).values()
        ]
        kept = torch.cat(same).numpy() if same else None
        moved = None if kept is None else statistics.paired(kept | True, kept)
        return Rates(target=after, before=before, neighbours=moved, unrelated=None, n=n)
