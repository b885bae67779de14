"""The evidence about a generator: every picture drawn once, read once by each judge, shared by all probes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from palimpsest.core.change import diff
from palimpsest.core.concept import Concept
from palimpsest.core.errors import Unsupported
from palimpsest.core.patch import Patch
from palimpsest.core.trace import Trace
from palimpsest.probes.broken import kinds
from palimpsest.probes.crew import Crew, Model, draw
from palimpsest.probes.evaluators import Judge, classes_of
from palimpsest.probes.evidence import Evidence, norms, parts, refuse_broken, rounded
from palimpsest.probes.extractors import matches
from palimpsest.probes.gallery import Gallery
from palimpsest.probes.groups import LISTED, Taught
from palimpsest.probes.plan import Plan
from palimpsest.probes.read import read

_WHO = {
    "before": "untouched model",
    "after": "edited model",
    "other": "noise floor",
    "oracle": "model that never saw it",
}
SETS = tuple(_WHO)
REFERENCE = "reference"  # pictures of a folder: only their features are kept
REFERENCES = "references"  # what newcomers were taught from
ALONE = "alone"  # the targets' pictures, each by the model with that change alone which is about it
PAIRS = "pairs"  # of merged changes: one row for each two of them
MATCH = "match"  # of a picture with its prompt
DIGITS = 5  # of the per-picture numbers that a receipt keeps


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn(Evidence):
    """What an audit of a generator collected.

    Sets are "before" (untouched), "after" (edited), "other" (untouched, other seeds) and, where there is one, "oracle"
    (a model that never saw the target, or always knew the newcomer). Rows follow `plan.shots`, those of "other"
    `plan.twin_shots`. Of "reference", where a folder of pictures is compared with, features alone are kept. Where
    newcomers were taught, "references" are the user's pictures of them, one newcomer after the other. Where changes
    were merged, "alone" are pictures of the targets by the model with one of them, in the order of `plan.alone`, and
    "pairs" has a row for each two of the changes.

    Measures: "set/judge/present" (n, classes) bool, "set/judge/features" (n, d), "set/judge/match" (cosine with the
    text of the picture's prompt), "set/drift" and "set/judge/drift" (of "after" and "other": the distance from
    "before"), "set/collapse" (index into `broken.KINDS`).
    """

    subject: ClassVar[str] = "generator"
    plan: Plan

    def present(self, judge: str, which: str, classes: Sequence[int]) -> Tensor:
        """(n,) bool: whether the judge sees any of the classes in each picture of a set."""
        return self(which, judge, "present")[:, list(classes)].any(1)

    def asked(self) -> list[tuple[int, str, list[int]]]:
        """(group, judge, classes) wherever a judge knows what a group asks for."""
        found = []
        for g, group in enumerate(self.plan.groups):
            for name, evaluator in self.evaluators.items():
                classes = classes_of(evaluator, group.concept) if group.concept is not None else []
                if classes:
                    found.append((g, name, classes))
        return found

    def listed(self) -> list[tuple[int, str, list[int], Concept]]:
        """(group, judge, classes, target) wherever a judge knows a target, which is looked for in prompts of a file."""
        found = []
        for g, group in enumerate(self.plan.groups):
            for name, target in product(self.evaluators, self.plan.request.target if group.role == LISTED else ()):
                if classes := classes_of(self.evaluators[name], target):
                    found.append((g, name, classes, target))
        return found

    def shown(self, judge: str, measure: str) -> list[tuple[Taught, int, range]]:
        """`plan.taught()` of the newcomers whose references a judge has read."""
        known = self.has(REFERENCES, judge, measure)
        return [entry for entry in self.plan.taught() if known and len(entry[2])]

    def featured(self) -> list[str]:
        """Judges whose features are known."""
        return [judge for judge in self.evaluators if self.has("before", judge, "features")]


def collect(
    host: Any,
    edited: Any,
    plan: Plan,
    judges: Sequence[Judge] = (),
    *,
    oracle: Any = None,
    drawn: Mapping[str, Tensor] | None = None,
    rows: Sequence[int] | None = None,
    batch: int | None = None,
    gallery: Gallery | None = None,
    trace: Trace | None = None,
    crew: Crew | None = None,
) -> Drawn:
    """Draws the pictures of a plan from the untouched and the edited model and lets every judge read each once.

    Args:
        host: the untouched model; anything with `sample`. It is unchanged afterwards.
        edited: a Patch for it, or another model with `sample`.
        oracle: a model that never saw the target, drawn with the same prompts and seeds.
        drawn: pictures of an earlier audit of the same host, oracle and plan; all but "after" are taken from it.
        rows: of the plan's shots; only these are drawn, before and after, and what follows from a picture alone or
            from a pair is measured. None: everything.
        batch: pictures that are drawn at once; as many as the model says where not given, 16 where it says nothing.
        gallery: keeps every batch as soon as it is drawn; what it already has is not drawn again.
        trace: takes seconds, forwards and progress.
        crew: the processes that draw; by default this one alone. What they draw is the same to the bit.

    Cost: `plan.pictures()` pictures (one more set with an oracle), each read once by each judge.
    """
    for group, judge in product(plan.groups, judges):
        if group.concept is not None:
            classes_of(judge.evaluator, group.concept)  # a name of two classes is refused before anything is drawn
    refuse_broken({"untouched model": host, "edited model": edited})
    trace = trace or Trace()
    gallery = Gallery() if gallery is None else gallery
    start = time.perf_counter()
    shots = {which: plan.asked(which) for which in _WHO}
    if rows is not None:
        shots = {which: tuple(shots[which][row] for row in rows) for which in ("before", "after")}
    shown = {k: v for k, v in (drawn or {}).items() if k != "after"}
    after = Model(host=host, patch=edited) if isinstance(edited, Patch) else Model(host=edited)
    wanted = {"before": (Model(host=host), shots["before"]), "after": (after, shots["after"])}
    if rows is None:
        wanted["other"] = Model(host=host), shots["other"]
    if rows is None and oracle is not None:
        wanted["oracle"] = Model(host=oracle), shots["oracle"]
    due = {which: (_WHO[which], *what) for which, what in wanted.items() if which not in shown}
    draw(due, plan, crew=crew or Crew(), gallery=gallery, trace=trace, batch=batch)
    shown |= {which: gallery.hang(which, what[-1]) for which, what in due.items()}
    patch = edited if isinstance(edited, Patch) else _diff(host, edited)
    return Drawn(
        plan=plan,
        measures=measured(plan, shown, judges, trace, rows=rows, gallery=gallery, crew=crew),
        gallery=shown,
        evaluators={j.evaluator.name: j.evaluator for j in judges},
        patch=patch,
        base=norms(host, patch),
        cost={
            "seconds": round(time.perf_counter() - start, 3),
            "pictures": sum(len(v) for v in shown.values()),
            "forwards": dict(trace.forwards),
            "peak_bytes": trace.peak_bytes,
        },
    )


def measured(
    plan: Plan,
    shown: Mapping[str, Tensor],
    judges: Sequence[Judge],
    trace: Trace,
    *,
    rows: Sequence[int] | None = None,
    gallery: Gallery | None = None,
    crew: Crew | None = None,
) -> dict[str, Tensor]:
    """Every measure of pictures by set; of pictures of these rows alone, those that need no other row."""
    found: dict[str, Tensor] = {}
    # A network that reads text knows no newcomer: its pictures are held against the prompts of the untouched model.
    prompts = {which: [s.prompt for s in plan.asked("other" if which == "other" else "before")] for which in shown}
    if rows is not None:
        prompts = {which: [said[row] for row in rows] for which, said in prompts.items()}
    gallery = Gallery() if gallery is None else gallery
    for judge in judges:
        for which, pictures in shown.items():
            present, features = read(judge, pictures, plan, crew=crew or Crew(), gallery=gallery, trace=trace)
            at = f"{which}/{judge.evaluator.name}"
            found |= {f"{at}/present": present} if judge.evaluator.classes else {}
            found |= {f"{at}/features": features} if features.shape[1] else {}
            if (cosines := matches(judge, features, prompts[which])) is not None:
                found[f"{at}/{MATCH}"] = rounded(cosines, DIGITS)
    with torch.autocast("cpu", enabled=False):  # whoever draws in half precision does not measure in it
        found |= _distances(plan, shown, found, rows is None)
    return found


def _distances(plan: Plan, shown: Mapping[str, Tensor], read: Mapping[str, Tensor], whole: bool) -> dict[str, Tensor]:
    """Drift and collapse; `read`: what judges read."""
    found: dict[str, Tensor] = {}
    judges = [judge for which, judge, name in map(parts, read) if (which, name) == ("before", "features")]
    for which in ("after", "other"):
        if which in shown:
            pairs = list(range(len(shown["before"])) if which == "after" else plan.twins)
            found[f"{which}/drift"] = rounded(_apart(shown["before"], shown[which], pairs), DIGITS)
            for judge in judges:
                mine, theirs = (read[f"{w}/{judge}/features"] for w in ("before", which))
                distance = (1 - F.cosine_similarity(mine[pairs], theirs)).clamp(min=0)
                found[f"{which}/{judge}/drift"] = rounded(distance, DIGITS)
    if whole:
        prompts = {p: i for i, p in enumerate(dict.fromkeys(s.prompt for s in plan.shots))}
        of = torch.tensor([prompts[s.prompt] for s in plan.shots])
        found |= {f"{which}/collapse": kinds(shown[which], of).double() for which in ("before", "after")}
    return found


def _apart(before: Tensor, then: Tensor, rows: Sequence[int], block: int = 64) -> Tensor:
    """(n,) root mean square difference of pictures from the rows of `before` that they belong to, block by block:
    thousands of pictures as floats would take many times their own memory."""
    found = []
    for i in range(0, len(then), block):
        apart = before[list(rows[i : i + block])].float() - then[i : i + block].float()
        found.append(apart.flatten(1).square().mean(1).sqrt())
    return torch.cat(found)


def _diff(host: Any, edited: Any) -> Patch | None:
    """What changed between two models; None where they cannot be compared tensor by tensor."""
    if not (hasattr(host, "root") and hasattr(edited, "root")):
        return None
    try:
        return diff(host, edited)
    except Unsupported:
        return None
