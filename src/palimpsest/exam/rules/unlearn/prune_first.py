"""Prune first claims that fine-tuning forgets more once weights were pruned."""

from palimpsest.exam.judged import Judged, Studied, interval, over
from palimpsest.exam.verbs.unlearn import Outcomes, both


def judge(system: str, main: Outcomes, studied: Studied) -> Judged:
    """Average gaps with and without pruning."""
    pairs = both(system, "unlearn/finetune", main)
    return over(
        "average gap below fine-tuning's, intervals apart",
        {c: a.average.high < b.average.low for c, (a, b) in pairs.items()},
        {c: f"{interval(a.average)} against {interval(b.average)}" for c, (a, b) in pairs.items()},
    )
