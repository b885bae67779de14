"""Gradient collision claims that what it forgets does not come back soon."""

from palimpsest.exam.judged import Judged, Studied, over
from palimpsest.exam.outcome import COST
from palimpsest.exam.verbs.unlearn import Outcomes, both


def judge(system: str, main: Outcomes, studied: Studied) -> Judged:
    """Steps of relearning beside those after fine-tuning, where an answer is gone."""
    pairs = {
        c: (a, b)
        for c, (a, b) in both(system, "unlearn/finetune", main).items()
        if a.kind != "samples" and a.relearn.value == a.relearn.value
    }
    return over(
        "held-out accuracy at most 3 points below retraining's, and 1.5 times as many steps as after fine-tuning until "
        "what was forgotten is back",
        {
            c: a.test.value >= -COST and a.relearn.value >= 1.5 * max(1.0, b.relearn.value)
            for c, (a, b) in pairs.items()
        },
        {
            c: f"held-out {a.test.value:+.1f}, {a.relearn.value:.0f} steps against {b.relearn.value:.0f}"
            for c, (a, b) in pairs.items()
        },
    )
