"""Prune first claims that fine-tuning forgets more once weights were pruned."""

from palimpsest.exam.rates import interval
from palimpsest.exam.verbs.unlearn import beside

judge = beside(
    "unlearn/finetune",
    "average gap below fine-tuning's, intervals apart",
    lambda a, b: a["average gap"].high < b["average gap"].low,
    lambda a, b: f"{interval(a['average gap'])} against {interval(b['average gap'])}",
)
