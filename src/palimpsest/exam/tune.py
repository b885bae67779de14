"""Finds budgets: `python -m palimpsest.exam.tune unlearn --cases "digits, class" --only unlearn/salun`.

The candidates of a system (its budget's "tries") are tried one after another, on work that the exam does not judge,
until one scores at most GOOD; the least score is written into its budget's file at once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from palimpsest.core.errors import BadRequest, PalimpsestError
from palimpsest.exam import budgets
from palimpsest.exam.case import Case, Exam, exams
from palimpsest.processes import one_thread

GOOD = 1.0  # for unlearning: a point of held-out accuracy weighs 0.33, one of the forget set 0.2


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exam")
    parser.add_argument("--cases", nargs="*", default=[], help="only these, as the tables call them")
    parser.add_argument("--only", nargs="*", default=[], help="only these systems")
    asked = parser.parse_args(argv)
    exam = exams()[asked.exam]
    one_thread()
    for case in exam.cases:
        if not asked.cases or exam.words(case) in asked.cases:
            tune(exam, case, asked.only)


def tune(exam: Exam, case: Case, only: Sequence[str] = ()) -> None:
    """Tries all candidates of a case and writes the best of each system at once.

    Raises:
        BadRequest: the exam says of no candidate how good it is.
    """
    if exam.score is None:
        raise BadRequest(f"The exam {exam.name} has no score for candidates; its budgets are found by hand.")
    words = exam.words(case)
    for system in only or exam.examined():
        tried = []
        for parameters in budgets.candidates(system, words.split(",")[0]):
            try:
                tried.append(exam.score(system, parameters, case))
            except PalimpsestError as e:
                print(system, parameters, str(e)[:80], flush=True)
                continue
            print(system, json.dumps(tried[-1]), flush=True)
            if tried[-1]["score"] <= GOOD:
                break
        if tried:
            budgets.keep(system, words, min(tried, key=lambda t: t["score"]) | {"tried": len(tried)})


if __name__ == "__main__":
    main()
