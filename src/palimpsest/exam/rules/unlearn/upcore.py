"""UPCORE claims that forgetting a core of the set harms less than forgetting all of it."""

from palimpsest.exam.verbs.unlearn import beside

judge = beside(
    "unlearn/gradient_ascent",
    "with gradient ascent: forget accuracy at most 2 points above that on the whole set, held-out accuracy higher",
    lambda a, b: (
        a["forget gap"].value <= b["forget gap"].value + 2 and a["held-out gap"].value > b["held-out gap"].value
    ),
    lambda a, b: "forget {:+.1f} against {:+.1f}, held-out {:+.1f} against {:+.1f}".format(
        *(o[part].value for part in ("forget gap", "held-out gap") for o in (a, b))
    ),
)
