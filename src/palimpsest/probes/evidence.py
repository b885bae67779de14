"""The material of one audit: every picture drawn once, read once by each judge, shared by all probes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from palimpsest.core.errors import Unsupported
from palimpsest.core.fingerprint import tensors_of
from palimpsest.core.patch import Patch, diff
from palimpsest.core.reading import Evaluator
from palimpsest.core.trace import Trace
from palimpsest.probes.evaluators import Judge, classes_of, decide
from palimpsest.probes.gallery import Gallery
from palimpsest.probes.plan import Plan

_WHO = {
    "before": "untouched model",
    "after": "edited model",
    "other": "noise floor",
    "oracle": "model that never saw it",
}
SETS = ("before", "after", "other", "oracle")
DIGITS = 5  # of the per-picture numbers that a receipt keeps: readings are computed from what it keeps


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one judge saw in one set of pictures.

    Args:
        present: (n, classes) bool.
        features: (n, d) float32; (n, 0) where only what was kept in a receipt is known.
    """

    present: Tensor
    features: Tensor


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What an audit collected.

    Args:
        plan: what was drawn; rows of all tensors follow `plan.shots`, those of "other" `plan.twin_shots`.
        pictures: set -> (n, 3, H, W) uint8. Sets: "before" (untouched), "after" (edited), "other" (untouched, other
            seeds), and "oracle" (a model that never saw the target) where there is one.
        seen: judge's name -> set -> what it saw.
        evaluators: judge's name -> who it is.
        patch: the change, where it is known as one.
        base: of each changed tensor of the untouched model, (shape, Frobenius norm).
        cost: seconds, forwards (rows through each part), pictures, peak_bytes.
        kept: per-picture numbers read back from a receipt, used instead of computing them from pictures.
    """

    plan: Plan
    pictures: Mapping[str, Tensor]
    seen: Mapping[str, Mapping[str, Seen]]
    evaluators: Mapping[str, Evaluator]
    patch: Patch | None = None
    base: Mapping[str, tuple[tuple[int, ...], float]] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    kept: Mapping[str, Tensor] = field(default_factory=dict)

    def present(self, judge: str, which: str, classes: Sequence[int]) -> Tensor:
        """(n,) bool: whether the judge sees any of the classes in each picture of a set."""
        return self.seen[judge][which].present[:, list(classes)].any(1)

    def measured(self, name: str, values: Any) -> Tensor:
        """(n,) per-picture numbers: those kept in a receipt, else `values()`, rounded as a receipt keeps them."""
        return self.kept[name] if name in self.kept else rounded(values())

    def asked(self) -> list[tuple[int, str, list[int]]]:
        """(group, judge, classes) wherever a judge knows what a group asks for."""
        found = []
        for g, group in enumerate(self.plan.groups):
            for name, evaluator in self.evaluators.items():
                classes = classes_of(evaluator, group.concept) if group.concept is not None else []
                if classes:
                    found.append((g, name, classes))
        return found


def rounded(values: Tensor) -> Tensor:
    """float64, to the digits that a receipt keeps."""
    return torch.round(values.double(), decimals=DIGITS)


def collect(
    host: Any,
    edited: Any,
    plan: Plan,
    judges: Sequence[Judge] = (),
    *,
    oracle: Any = None,
    drawn: Mapping[str, Tensor] | None = None,
    batch: int = 16,
    gallery: Gallery | None = None,
    trace: Trace | None = None,
) -> Evidence:
    """Draws the pictures of a plan from the untouched and the edited model and lets every judge read each once.

    Args:
        host: the untouched model; anything with `sample`. It is unchanged afterwards.
        edited: a Patch for it, or another model with `sample`.
        oracle: a model that never saw the target, drawn with the same prompts and seeds.
        drawn: pictures of an earlier audit of the same host, oracle and plan; all but "after" are taken from it.
        batch: pictures that are drawn at once.
        gallery: keeps every batch as soon as it is drawn; what it already has is not drawn again.
        trace: takes seconds, forwards and progress.

    Cost: `plan.pictures()` pictures (one more set with an oracle), each read once by each judge.
    """
    for group, judge in product(plan.groups, judges):
        if group.concept is not None:
            classes_of(judge.evaluator, group.concept)  # a name of two classes is refused before anything is drawn
    trace = trace or Trace()
    gallery = Gallery() if gallery is None else gallery
    start = time.perf_counter()
    draw = partial(_draw, gallery=gallery, plan=plan, trace=trace, batch=batch)
    shown = {k: v for k, v in (drawn or {}).items() if k != "after"}
    if "before" not in shown:
        shown["before"] = draw(host, "before")
    with ExitStack() as stack:
        if isinstance(edited, Patch):
            stack.enter_context(edited.applied(host))
        model = host if isinstance(edited, Patch) else edited
        shown["after"] = draw(model, "after")
    if "other" not in shown:
        shown["other"] = draw(host, "other")
    if oracle is not None and "oracle" not in shown:
        shown["oracle"] = draw(oracle, "oracle")
    seen = {j.evaluator.name: {k: _look(j, v, trace) for k, v in shown.items()} for j in judges}
    patch = edited if isinstance(edited, Patch) else _diff(host, edited)
    return Evidence(
        plan=plan,
        pictures=shown,
        seen=seen,
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


def _draw(host: Any, which: str, *, gallery: Gallery, plan: Plan, trace: Trace, batch: int) -> Tensor:
    """(n, 3, H, W) uint8 of a set, batch by batch, each kept as soon as it is there."""
    shots = plan.twin_shots if which == "other" else plan.shots
    missing = gallery.missing(which, shots)
    with ExitStack() as stack:
        if hasattr(host, "parts") and missing:
            stack.enter_context(trace.watching(host))
        for i in range(0, len(missing), batch):
            now = missing[i : i + batch]
            images = host.sample(
                [s.prompt for s in now],
                [s.seed for s in now],
                plan.sampling,
                batch=batch,
                progress=partial(_tell, trace, _WHO[which], i, len(now), len(missing)),
            )
            gallery.add(which, now, (images.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu())
    return gallery.hang(which, shots)


def _tell(trace: Trace, who: str, before: int, now: int, pictures: int, done: int, total: int) -> None:
    """Progress in pictures, which move on within a batch as its denoising steps are done."""
    trace.tell(f"drawing: {who}", before + now * done // total, pictures)


def _look(judge: Judge, pictures: Tensor, trace: Trace, batch: int = 64) -> Seen:
    present, features = [], []
    for i in range(0, len(pictures), batch):
        images = pictures[i : i + batch].float() / 255
        present.append(decide(judge.evaluator, judge.read(images)))
        features.append(judge.features(images).float().flatten(1))
        trace.tell(f"reading: {judge.evaluator.name}", min(i + batch, len(pictures)), len(pictures))
    return Seen(present=torch.cat(present), features=torch.cat(features))


def _diff(host: Any, edited: Any) -> Patch | None:
    """What changed between two models; None where they cannot be compared tensor by tensor."""
    if not (hasattr(host, "root") and hasattr(edited, "root")):
        return None
    try:
        return diff(host, edited)
    except Unsupported:
        return None


def norms(host: Any, patch: Patch | None) -> dict[str, tuple[tuple[int, ...], float]]:
    """(shape, Frobenius norm) of each tensor of a host that a patch changes."""
    if patch is None or not hasattr(host, "root"):
        return {}
    tensors = tensors_of(host.root)
    return {n: (tuple(tensors[n].shape), float(tensors[n].detach().float().norm())) for n in patch.deltas}
