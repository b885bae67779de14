"""L1-sparse unlearning claims to forget what fine-tuning does not."""

from palimpsest.exam.judged import Judged, Studied, over
from palimpsest.exam.outcome import COST
from palimpsest.exam.verbs.unlearn import Outcomes, both


def judge(system: str, main: Outcomes, studied: Studied) -> Judged:
    """Forget accuracy far below fine-tuning's, the rest as good."""
    pairs = both(system, "unlearn/finetune", main)
    less = {c: b.forget.value - a.forget.value for c, (a, b) in pairs.items()}
    return over(
        "forget accuracy at least 50 points below fine-tuning's, held-out accuracy at most 3 points below retraining's",
        {c: less[c] >= 50 and a.test.value >= -COST for c, (a, _) in pairs.items()},
        {c: f"{less[c]:.0f} points below, held-out {a.test.value:+.1f}" for c, (a, _) in pairs.items()},
    )
