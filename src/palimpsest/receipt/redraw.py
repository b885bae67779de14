"""Draws a receipt's pictures again and compares them with what it keeps of the first time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from palimpsest.core.patch import Patch
from palimpsest.core.trace import Progress, Trace
from palimpsest.probes.evaluators import Judge, decide
from palimpsest.probes.evidence import collect
from palimpsest.probes.plan import Plan, Shot
from palimpsest.probes.suite import readings as read
from palimpsest.receipt.build import alike, look, picture_hash

SAMPLE = 12


def again(
    data: Mapping[str, Any],
    before: Any,
    after: Any,
    judges: Sequence[Judge],
    how_many: str,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Findings, as the fields of `verify.Finding`.

    Args:
        how_many: "sample": 12 rows spread over the plan, before and after; "all": the whole audit again.
    """
    from palimpsest.receipt.verify import compare

    plan = Plan.from_plain({**data["plan"], "request": data["request"]})
    trace = Trace(progress=progress)
    if how_many == "all" and "oracle" not in data["pictures"]:
        evidence = collect(before, after, plan, judges, trace=trace)
        sets = {k: (range(len(v)), v) for k, v in evidence.pictures.items()}
        reads = {j: {k: s.present for k, s in seen.items()} for j, seen in evidence.seen.items()}
        numbers = [vars(f) for f in compare(data["readings"], read(evidence), "pictures drawn again")]
        return _compare(data, plan, sets, reads) + numbers
    count = len(plan.shots)
    rows = list(range(count)) if how_many == "all" else sorted({i * count // SAMPLE for i in range(SAMPLE)})
    shots = [plan.shots[r] for r in rows]
    sets = {"before": (rows, _draw(before, plan, shots, progress))}
    with ExitStack() as stack:
        if isinstance(after, Patch):
            stack.enter_context(after.applied(before))
        sets["after"] = (rows, _draw(before if isinstance(after, Patch) else after, plan, shots, progress))
    reads = {
        j.evaluator.name: {k: decide(j.evaluator, j.read(v.float() / 255)) for k, (_, v) in sets.items()}
        for j in judges
    }
    return _compare(data, plan, sets, reads)


def _draw(host: Any, plan: Plan, shots: Sequence[Shot], progress: Progress | None) -> Tensor:
    images = host.sample(
        [s.prompt for s in shots],
        [s.seed for s in shots],
        plan.sampling,
        progress=None if progress is None else lambda done, total: progress("drawing again", done, total),
    )
    return (images.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def _compare(
    data: Mapping[str, Any],
    plan: Plan,
    sets: Mapping[str, tuple[Sequence[int], Tensor]],
    reads: Mapping[str, Mapping[str, Tensor]],
) -> list[dict[str, Any]]:
    """One finding for each picture that is another one or reads differently, one for all that are the same."""
    found: list[dict[str, Any]] = []
    exact = close = 0
    for which, (rows, pictures) in sets.items():
        shots = plan.twin_shots if which == "other" else plan.shots
        for i, row in enumerate(rows):
            stated = data["pictures"][which][row]
            what = f"picture {which}/{row} ({shots[row].prompt or 'empty prompt'}, seed {shots[row].seed})"
            if picture_hash(pictures[i]) == stated["sha256"]:
                exact += 1
            elif alike(look(pictures[i]), stated["look"]):
                close += 1
            else:
                found.append({"status": "differs", "what": what, "detail": "drawn again it is another picture"})
                continue
            for judge, seen in reads.items():
                now = seen[which][i].nonzero().flatten().tolist()
                if now != data["reads"][judge][which][row]:
                    text = _said(data, judge, data["reads"][judge][which][row], now)
                    found.append({"status": "differs", "what": what, "detail": text})
    rounding = f", {close} up to rounding" if close else ""
    total = sum(len(rows) for rows, _ in sets.values())
    detail = f"drawn again, {exact} bit for bit{rounding}"
    return [*found, {"status": "same", "what": f"{exact + close} of {total} pictures", "detail": detail}]


def _said(data: Mapping[str, Any], judge: str, stated: Sequence[int], now: Sequence[int]) -> str:
    classes = data["evaluators"][judge]["classes"]

    def names(indices: Sequence[int]) -> str:
        return ", ".join(classes[i] for i in indices) or "nothing"

    return f"{judge} reads {names(now)}, the receipt says {names(stated)}"
