"""Signatures of robustness: what they bring to corrupted pictures, what they cost on clean ones, and elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from palimpsest.core.fingerprint import tensors_of
from palimpsest.core.patch import compose
from palimpsest.exam.case import Case, Exam, Records, cases
from palimpsest.exam.grounds import Tuning, corrupted, half, rights, tuned
from palimpsest.exam.judged import Judged, Verdict
from palimpsest.exam.pictures import method_of
from palimpsest.exam.rates import change, points
from palimpsest.exam.tables import means, shares

CLEAN, TRAINED, OTHER, ELSEWHERE = "clean", "trained on it", "another clean", "elsewhere"
RWS = "merge/robust_weight_signatures"
BESIDE = (CLEAN, TRAINED, OTHER, ELSEWHERE)
GAIN, COST, SIZE = 0.10, -0.02, 1 / 8
MEASURED = (
    "corrupted pictures +10 points at -2 on clean ones, on the own clean model and another, an eighth of its size"
)
CASES = cases(__file__)


def examine(system: str, case: Case, seed: int) -> dict[str, Any]:
    """Bits of right answers on each corruption and, with what is meant against it, on clean pictures.

    Cost: a minute and a half once a seed.
    """
    n, how = case["pictures"], Tuning(epochs=case["epochs"], lr=case["lr"])
    at = half(case["task"], case["start"], 2 * n, case["judged"], seed)
    shapes = {name: t.shape for name, t in tensors_of(at.host.root).items()}
    clean, other = (tuned(at.host, pictures, how, seed) for pictures in (at.more[:n], at.more[n:]))
    found: dict[str, Any] = {"corrupted": "", "clean": ""}
    for kind in case["corruptions"]:
        patch = other if system == OTHER else clean
        if system in (TRAINED, ELSEWHERE, RWS):
            robust = tuned(at.host, corrupted(at.more[:n], kind, "part", seed), how, seed)
            patch = robust
        if system in (ELSEWHERE, RWS):
            method = replace(method_of(RWS), alone=True)
            signature = method([clean, robust], at.host, seed=seed)
            patch = compose(signature, clean if system == RWS else other, overlap="sum", shapes=shapes)
            of_all = sum(t.numel() for t in tensors_of(at.host.root).values())
            found["size"] = sum(shapes[name].numel() for name in signature.deltas) / of_all
        judged = {"corrupted": corrupted(at.judged, kind, "judged"), "clean": at.judged}
        for name, told in rights(at.host, patch, judged).items():
            found[name] += told
    return found


def judge(system: str, by: Records) -> Judged:
    """The paper's claim, on the model that the signature was taken beside and on another."""
    pairs = {"own": (CLEAN, system), "another": (OTHER, ELSEWHERE)}
    moved = {w: [change(by[a], by[b], name) for name in ("corrupted", "clean")] for w, (a, b) in pairs.items()}
    size = by[system][0]["size"]
    held = [gain.value >= GAIN and gain.low > 0 and cost.value >= COST for gain, cost in moved.values()]
    verdict: Verdict = "holds" if all(held) and size <= SIZE else "does not hold here"
    if verdict != "holds" and (any(held) or all(gain.low > 0 for gain, _ in moved.values())):
        verdict = "holds in part"
    told = [f"{w}: corrupted {points(gain)}, clean {points(cost)}" for w, (gain, cost) in moved.items()]
    return Judged(measured=MEASURED, found=f"{'; '.join(told)}; size {100 * size:.0f} %", verdict=verdict)


COLUMNS = {
    "on corrupted pictures": shares("corrupted"),
    "on clean pictures": shares("clean"),
    "size": means("size", "{:.2f}".format),
}
EXAM = Exam(
    name="signatures", verb="merge", cases=CASES, examine=examine, systems=(*BESIDE, RWS), with_verb=True,
    columns=COLUMNS,
)  # fmt: skip
