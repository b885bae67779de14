"""SalUn claims a small average gap on random samples: 0.2 points, or what retrained models differ by."""

from palimpsest.exam.rates import interval
from palimpsest.exam.verbs.unlearn import each

judge = each(
    "random samples: average gap at most 0.2 points, or what one retrained model differs from the others",
    lambda o: o["average gap"].value <= max(0.2, o.floor),
    lambda o: f"{interval(o['average gap'])} against {o.floor:.1f}",
    ("samples",),
)
