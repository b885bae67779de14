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
from palimpsest.exam.case import Exam, exams
from palimpsest.exam.digest import key


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exams", nargs="*", help="names of exams and studies; all where none is named")
    parser.add_argument("--results", type=Path, default=Path("exam/results"))
    asked = parser.parse_args()
    for name, exam in exams().items():
        if not asked.exams or name in asked.exams:
            print(f"{name}: {rekey(asked.results, exam)} records have another key")


def rekey(results: Path, exam: Exam) -> int:
    """Gives every record the key of the present code, and says how many changed: for code that changed no bit.

    Use it after a refactoring that was shown to reproduce the records; never to spare an exam.
    """
    changed = 0
    for path in {record.path_of(results, exam, system) for system in record.read(results, exam)}:
        stored = record.stored_in(path)
        for r in stored[exam.part]:
            system = r.get("system") or f"{exam.verb}/{path.stem}"
            case = r[exam.label] if exam.label else exam.cases[0]
            changed += r["key"] != key(exam, system, case, r["seed"])
            r["key"] = key(exam, system, case, r["seed"])
        record.write(path, stored)
    return changed


if __name__ == "__main__":
    main()
