"""MACE claims to erase many concepts at once with less harm to others than ESD."""

from palimpsest.exam.judged import Studied, Verdict
from palimpsest.exam.studies import many
from palimpsest.exam.verbs.erase import Summaries


def compared(main: Summaries, studied: Studied) -> list[tuple[str, str, Verdict]]:
    """At each number of concepts."""
    return [
        (f"MACE beats ESD at {n} concepts", *many.better_than(studied.get("many", {}), "erase/mace", "erase/esd", n))
        for n in many.CASE["counts"]
    ]
