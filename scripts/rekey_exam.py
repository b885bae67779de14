"""Give the exam's records the keys of the present code: after a refactoring that was shown to change no bit.

    python scripts/rekey_exam.py [--results exam/results] [erase unlearn attack ...]

A record's key follows the code of everything that it depends on, so that any change there asks for another run. Where
a change only moved code, run one case of every system that it touches (`palimpsest exam SYSTEM --again`, with a copy of
the results) and compare the records. If they are equal to the bit, costs apart, run this, and say so in the commit.
Never use it to spare a run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from palimpsest.exam import record
from palimpsest.exam.case import exams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exams", nargs="*", help="names of exams and studies; all where none is named")
    parser.add_argument("--results", type=Path, default=Path("exam/results"))
    asked = parser.parse_args()
    for name, exam in exams().items():
        if not asked.exams or name in asked.exams:
            print(f"{name}: {record.rekey(asked.results, exam)} records have another key")


if __name__ == "__main__":
    main()
