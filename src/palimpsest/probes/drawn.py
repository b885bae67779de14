"""The evidence about a generator: every picture drawn once, read once by each judge, shared by all probes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from palimpsest.core.concept import Concept
from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.core.patch import Patch, diff
from palimpsest.core.trace import Trace
from palimpsest.probes.broken import kinds
from palimpsest.probes.evaluators import Judge, classes_of, decide
from palimpsest.probes.evidence import Evidence, norms, parts, refuse_broken, rounded
from palimpsest.probes.gallery import Gallery
from palimpsest.probes.own_judge import OwnJudge
from palimpsest.probes.plan import LISTED, Plan, Shot, batches

_WHO = {
    "before": "untouched model",
    "after": "edited model",
    "other": "noise floor",
    "oracle": "model that never saw it",
}
SETS = tuple(_WHO)
DIGITS = 5  # of the per-picture numbers that a receipt keeps


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn(Evidence):
    """What an audit of a generator collected.

    Sets are "before" (untouched), "after" (edited), "other" (untouched, other seeds) and, where there is one, "oracle"
    (a model that never saw the target). Rows follow `plan.shots`, those of "other" `plan.twin_shots`.

    Measures: "set/judge/present" (n, classes) bool, "set/judge/features" (n, d), "set/drift" and "set/judge/drift"
    (of "after" and "other": the distance from "before"), "set/collapse" (index into `broken.KINDS`).
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

    Cost: `plan.pictures()` pictures (one more set with an oracle), each read once by each judge.
    """
    for group, judge in product(plan.groups, judges):
        if group.concept is not None:
            classes_of(judge.evaluator, group.concept)  # a name of two classes is refused before anything is drawn
    refuse_broken({"untouched model": host, "edited model": edited})
    trace = trace or Trace()
    gallery = Gallery() if gallery is None else gallery
    start = time.perf_counter()
    shots = plan.shots if rows is None else tuple(plan.shots[row] for row in rows)
    draw = partial(_draw, gallery=gallery, plan=plan, trace=trace, batch=batch)
    shown = {k: v for k, v in (drawn or {}).items() if k != "after"}
    if "before" not in shown:
        shown["before"] = draw(host, "before", shots)
    with ExitStack() as stack:
        if isinstance(edited, Patch):
            stack.enter_context(edited.applied(host))
        shown["after"] = draw(host if isinstance(edited, Patch) else edited, "after", shots)
    if rows is None and "other" not in shown:
        shown["other"] = draw(host, "other", plan.twin_shots)
    if rows is None and oracle is not None and "oracle" not in shown:
        shown["oracle"] = draw(oracle, "oracle", shots)
    patch = edited if isinstance(edited, Patch) else _diff(host, edited)
    return Drawn(
        plan=plan,
        measures=measured(plan, shown, judges, trace, whole=rows is None, gallery=gallery),
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
    whole: bool = True,
    gallery: Gallery | None = None,
) -> dict[str, Tensor]:
    """Every measure of pictures by set; without `whole` those alone that need no other row."""
    found: dict[str, Tensor] = {}
    gallery = Gallery() if gallery is None else gallery
    for judge in judges:
        for which, pictures in shown.items():
            present, features = _read(judge, pictures, trace, gallery)
            found[f"{which}/{judge.evaluator.name}/present"] = present
            if features.shape[1]:
                found[f"{which}/{judge.evaluator.name}/features"] = features
    with torch.autocast("cpu", enabled=False):  # whoever draws in half precision does not measure in it
        found |= _distances(plan, shown, found, whole)
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


def _draw(
    host: Any, which: str, shots: Sequence[Shot], *, gallery: Gallery, plan: Plan, trace: Trace, batch: int | None
) -> Tensor:
    """(n, 3, H, W) uint8 of a set's shots, batch by batch, each kept as soon as it is there."""
    missing = gallery.missing(which, shots)
    with ExitStack() as stack:
        if hasattr(host, "parts") and missing:
            stack.enter_context(trace.watching(host))
        done = 0
        rows: int = getattr(host, "at_once", lambda size: 16)(plan.size) if batch is None else batch
        for now in batches(missing, rows):
            images = host.sample(
                [s.prompt for s in now],
                [s.seed for s in now],
                plan.how(now[0]),
                batch=rows,
                progress=partial(_tell, trace, _WHO[which], done, len(now), len(missing)),
            )
            done += len(now)
            if not bool(torch.isfinite(images).all()):
                raise BadRequest(
                    f"The {_WHO[which]} draws NaN instead of pictures (first asked: {now[0].prompt!r}): its weights or "
                    "its scheduler's settings are broken. Nothing can be measured on it."
                )
            gallery.add(which, now, (images.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu())
    return gallery.hang(which, shots)


def _tell(trace: Trace, who: str, before: int, now: int, pictures: int, done: int, total: int) -> None:
    """Progress in pictures, which move on within a batch as its denoising steps are done."""
    trace.tell(f"drawing: {who}", before + now * done // total, pictures)


def _read(judge: Judge, pictures: Tensor, trace: Trace, gallery: Gallery) -> tuple[Tensor, Tensor]:
    """(n, classes) bool and (n, d) float32 of one judge for a set of pictures.

    What takes as long as drawing, the audited model's own reading, is kept like pictures are and not done twice.
    """
    if not isinstance(judge, OwnJudge):
        return _asked(judge, pictures, trace, 64)
    reader = judge.evaluator.sha256
    unread = [i for i, picture in enumerate(pictures) if gallery.read(reader, picture) is None]
    with trace.watching(judge.host):
        for now in (unread[i : i + 16] for i in range(0, len(unread), 16)):
            gallery.heard(reader, pictures[now], *_asked(judge, pictures[now], Trace(), 16))
            trace.tell(f"reading: {judge.evaluator.name}", unread.index(now[-1]) + 1, len(unread))
    said = [gallery.read(reader, picture) for picture in pictures]
    present, features = zip(*filter(None, said), strict=True)
    return torch.stack(present), torch.stack(features)


def _asked(judge: Judge, pictures: Tensor, trace: Trace, batch: int) -> tuple[Tensor, Tensor]:
    present, features = [], []
    for i in range(0, len(pictures), batch):
        images = pictures[i : i + batch].float() / 255
        present.append(decide(judge.evaluator, judge.read(images)))
        features.append(judge.features(images).float().flatten(1))
        trace.tell(f"reading: {judge.evaluator.name}", min(i + batch, len(pictures)), len(pictures))
    return torch.cat(present), torch.cat(features)


def _diff(host: Any, edited: Any) -> Patch | None:
    """What changed between two models; None where they cannot be compared tensor by tensor."""
    if not (hasattr(host, "root") and hasattr(edited, "root")):
        return None
    try:
        return diff(host, edited)
    except Unsupported:
        return None
