"""Between a model of many styles and its fine-tuning on one: what is left elsewhere, and where it was tuned."""

from __future__ import annotations

from typing import Any

from palimpsest.core.pictures import Pictures
from palimpsest.exam.case import Case, Exam, Records, cases
from palimpsest.exam.grounds import STYLES, SUBJECTS, Tuning, drawn, rights, started, tuned
from palimpsest.exam.judged import Judged, Verdict
from palimpsest.exam.pictures import UNTOUCHED, method_of
from palimpsest.exam.rates import change, points
from palimpsest.exam.tables import shares

TUNED = "fine-tuned"
BESIDE = (UNTOUCHED, TUNED)
GAIN, FALL, HARDLY = 0.04, -0.05, -0.01
MEASURED = "elsewhere at least 4 points above the fine-tuned model's, and at most 1 below it where it was tuned"
CASES = cases(__file__)


def examine(system: str, case: Case, seed: int) -> dict[str, Any]:
    """Bits of right answers where the model was tuned and elsewhere. Cost: half a minute once a seed."""
    known = [drawn(s, case["few"], "known", seed) for s in case["known"]]
    host = started("many-styles", Pictures.cat(known), SUBJECTS, STYLES, seed)
    judged = {s: drawn(s, case["judged"], "judged", seed) for s in (case["tuned"], *case["elsewhere"])}
    patch = None
    if system != UNTOUCHED:
        how = Tuning(epochs=case["epochs"], lr=case["lr"])
        patch = tuned(host, drawn(case["tuned"], case["pictures"], "part", seed), how, seed)
    if "/" in system:
        patch = method_of(system)([patch], host, seed=seed)
    found = rights(host, patch, judged)
    return {"tuned": found[case["tuned"]], "elsewhere": "".join(found[s] for s in case["elsewhere"])}


def judge(system: str, by: Records) -> Judged:
    """The paper's claim, where fine-tuning has lost something to win back."""
    fell = change(by[UNTOUCHED], by[TUNED], "elsewhere")
    gained, kept = (change(by[TUNED], by[system], name) for name in ("elsewhere", "tuned"))
    found = f"elsewhere {points(gained)}, where it was tuned {points(kept)}"
    if fell.value > FALL:
        why = f"fine-tuning changes what is elsewhere by {points(fell)}: nothing to win back"
        return Judged(measured=MEASURED, found=found, verdict="not measured", why=why)
    whole = gained.value >= GAIN and gained.low > 0 and kept.value >= HARDLY
    verdict: Verdict = "holds" if whole else "holds in part" if gained.low > 0 else "does not hold here"
    return Judged(measured=MEASURED, found=found, verdict=verdict)


COLUMNS = {"where it was tuned": shares("tuned"), "elsewhere": shares("elsewhere")}
EXAM = Exam(
    name="halfway", verb="merge", cases=CASES, examine=examine, systems=(*BESIDE, "merge/wise_ft"), with_verb=True,
    columns=COLUMNS,
)  # fmt: skip
