"""Gradient collision claims that what it forgets does not come back soon, where an answer is gone."""

from palimpsest.exam.outcome import COST, Outcome
from palimpsest.exam.verbs.unlearn import beside


def _words(a: Outcome, b: Outcome) -> str:
    if a.kind == "samples" or a["relearn"].value != a["relearn"].value:  # nan: not measured
        return ""
    steps = f"{a['relearn'].value:.0f} steps against {b['relearn'].value:.0f}"
    return f"held-out {a['held-out gap'].value:+.1f}, {steps}"


judge = beside(
    "unlearn/finetune",
    "held-out accuracy at most 3 points below retraining's, and 1.5 times as many steps as after fine-tuning until "
    "what was forgotten is back",
    lambda a, b: a["held-out gap"].value >= -COST and a["relearn"].value >= 1.5 * max(1.0, b["relearn"].value),
    _words,
)
