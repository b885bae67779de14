"""What was measured: JSON files with one list of records a part, each record with the key of all it depends on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from palimpsest.core.files import write_text
from palimpsest.exam.case import Exam, Record
from palimpsest.exam.digest import key

T = TypeVar("T")


def path_of(results: Path, exam: Exam, system: str) -> Path:
    """The file of a system's records: its own, or the study's."""
    return results / (f"studies/{exam.name}.json" if exam.part == "records" else f"{system}.json")


def read(results: Path, exam: Exam) -> dict[str, list[Record]]:
    """Every record of an exam by system, whatever its key; systems without one are left out."""
    by: dict[str, list[Record]] = {}
    if exam.part == "records":
        for record in stored_in(path_of(results, exam, "")).get("records", ()):
            by.setdefault(record["system"], []).append(record)
        return by
    for file in sorted((results / exam.verb).glob("*.json")):
        by[f"{exam.verb}/{file.stem}"] = stored_in(file).get(exam.part, [])
    return {system: records for system, records in by.items() if records}


def complete(results: Path, exam: Exam) -> dict[str, list[Record]]:
    """The systems that have as many records as the exam has runs for one."""
    return {system: records for system, records in read(results, exam).items() if len(records) >= exam.runs}


def pooled(results: Path, exam: Exam, pool: Callable[[list[Record], str], T | None]) -> dict[str, dict[str, T]]:
    """What a pool makes of each system's records about each concept, "" for all of them together.

    Of systems that were run, or refused, on every concept with every seed, and worked at least once.
    """
    concepts = [c["concept"] for c in exam.cases]
    every = {(c, s) for c in concepts for s in exam.seeds}
    whole = {s: rs for s, rs in read(results, exam).items() if {(r["case"]["concept"], r["seed"]) for r in rs} >= every}
    known = {s: {c: of for c in ("", *concepts) if (of := pool(rs, c)) is not None} for s, rs in whole.items()}
    return {system: of for system, of in known.items() if of}


def keys(results: Path, exam: Exam, system: str) -> set[str]:
    """Keys of a system's records that are kept."""
    return {record["key"] for record in stored_in(path_of(results, exam, system)).get(exam.part, ())}


def put(results: Path, exam: Exam, system: str, case: Mapping[str, Any], seed: int, record: Record) -> Path:
    """Adds a record at its place in the work; records of other contents than the present ones are dropped.

    The file is read just before it is written, so that what another process wrote meanwhile stays.
    """
    path = path_of(results, exam, system)
    stored = stored_in(path) or ({"study": exam.name} if exam.part == "records" else {"system": system})
    named: dict[str, Any] = {"system": system} if exam.part == "records" else {}
    named |= {exam.label: dict(case)} if exam.label else {}
    new = {**named, "seed": seed, **record, "key": key(exam, system, case, seed)}
    known = {r["key"]: r for r in stored.get(exam.part, ())} | {new["key"]: new}
    within = () if exam.part == "records" else (system,)
    order = [key(exam, *run) for run in exam.work(within)]
    return write(path, stored | {exam.part: [known[k] for k in order if k in known]})


def stored_in(path: Path) -> dict[str, Any]:
    """What a results' file holds; {} where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write(path: Path, stored: Mapping[str, Any]) -> Path:
    """Writes a results' file."""
    return write_text(path, json.dumps(stored, indent=1, sort_keys=True) + "\n")
