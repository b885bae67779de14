"""L1-sparse unlearning claims to forget what fine-tuning does not."""

from palimpsest.exam.outcome import COST
from palimpsest.exam.verbs.unlearn import beside

judge = beside(
    "unlearn/finetune",
    "forget accuracy at least 50 points below fine-tuning's, held-out accuracy at most 3 points below retraining's",
    lambda a, b: b["forget gap"].value - a["forget gap"].value >= 50 and a["held-out gap"].value >= -COST,
    lambda a, b: (
        f"{b['forget gap'].value - a['forget gap'].value:.0f} points below, held-out {a['held-out gap'].value:+.1f}"
    ),
)
