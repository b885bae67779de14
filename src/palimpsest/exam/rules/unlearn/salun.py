"""SalUn claims a small average gap on random samples."""

from palimpsest.exam.judged import Judged, Studied, interval, over
from palimpsest.exam.verbs.unlearn import Outcomes, cases_of


def judge(system: str, main: Outcomes, studied: Studied) -> Judged:
    """The paper's 0.2 points, or what retrained models differ by among themselves."""
    cases = cases_of(system, main, ("samples",))
    return over(
        "random samples: average gap at most 0.2 points, or what one retrained model differs from the others",
        {c: o.average.value <= max(0.2, o.floor) for c, o in cases.items()},
        {c: f"{interval(o.average)} against {o.floor:.1f}" for c, o in cases.items()},
    )
