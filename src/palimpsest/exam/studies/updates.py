"""A model is updated with more pictures: how many answers become right, and how many that were right become wrong."""

from __future__ import annotations

from typing import Any

from palimpsest.core.pictures import Pictures
from palimpsest.exam.case import Case, Exam, Record, Records, cases
from palimpsest.exam.grounds import Tuning, bits, changed, half, logits, tuned
from palimpsest.exam.judged import Judged, over
from palimpsest.exam.pictures import method_of
from palimpsest.exam.rates import change, percent, points, rate
from palimpsest.merge.bcwi import BCWI

OLD, NEW, OUTPUTS, FISHER = "old", "new", "outputs averaged", "by Fisher"
BESIDE = (OLD, NEW, OUTPUTS, FISHER)
FEWER, WITHIN, FLIPS = 2 / 3, -0.005, 0.01
MEASURED = "flips at least a third fewer than the new model's, accuracy at most half a point below it"
CASES = cases(__file__)


def examine(system: str, case: Case, seed: int) -> dict[str, Any]:
    """Bits of right answers, and of those that were right before and no longer are. Cost: a minute once a seed."""
    at = half(case["task"], case["old"], case["more"], case["judged"], seed)
    every = Pictures.cat([at.learnt, at.more])
    new = tuned(at.host, every, Tuning(epochs=case["epochs"], lr=case["lr"]), seed)
    before = logits(at.host, at.judged)
    patch = None if system == OLD else new
    if system == FISHER:
        patch = BCWI(importance="fisher")([new], at.host, data={"old": at.learnt, "new": every}, seed=seed)
    elif "/" in system:
        patch = method_of(system)([new], at.host, seed=seed)
    with changed(at.host, patch):
        after = logits(at.host, at.judged)
    if system == OUTPUTS:
        after = before.softmax(1) + after.softmax(1)
    was, now = (answers.argmax(1) == at.judged.labels for answers in (before, after))
    return {"right": bits(now), "flips": bits(was & ~now)}


def _of(records: list[Record], task: str) -> list[Record]:
    return [r for r in records if r["case"]["task"] == task]


def judge(system: str, by: Records) -> Judged:
    """The paper's claim on every task where the update flips some answers."""
    held, words = {}, {}
    for task in (c["task"] for c in CASES):
        mine, new = (_of(list(by[s]), task) for s in (system, NEW))
        flips, others, moved = rate(mine, "flips"), rate(new, "flips"), change(new, mine, "right")
        if others.value >= FLIPS:
            held[task] = flips.value <= FEWER * others.value and moved.value >= WITHIN
            words[task] = f"flips {percent(flips)} against {percent(others)}, accuracy {points(moved)}"
    return over(MEASURED, held, words)


COLUMNS = {
    f"{task}, {name}": lambda s, by, task=task, key=key: percent(rate(_of(list(by[s]), task), key))
    for task in (c["task"] for c in CASES)
    for name, key in (("right", "right"), ("flips", "flips"))
}
EXAM = Exam(
    name="updates", verb="merge", cases=CASES, examine=examine, systems=(*BESIDE, "merge/bcwi"), called=("task",),
    label="case", with_verb=True, columns=COLUMNS,
)  # fmt: skip
