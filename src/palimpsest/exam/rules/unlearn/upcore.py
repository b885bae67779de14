"""UPCORE claims that forgetting a core of the set harms less than forgetting all of it."""

from palimpsest.exam.judged import Judged, Studied, over
from palimpsest.exam.verbs.unlearn import Outcomes, both


def judge(system: str, main: Outcomes, studied: Studied) -> Judged:
    """Beside gradient ascent on the whole set."""
    pairs = both(system, "unlearn/gradient_ascent", main)
    return over(
        "with gradient ascent: forget accuracy at most 2 points above that on the whole set, held-out accuracy higher",
        {c: a.forget.value <= b.forget.value + 2 and a.test.value > b.test.value for c, (a, b) in pairs.items()},
        {
            c: f"forget {a.forget.value:+.1f} against {b.forget.value:+.1f}, "
            f"held-out {a.test.value:+.1f} against {b.test.value:+.1f}"
            for c, (a, b) in pairs.items()
        },
    )
