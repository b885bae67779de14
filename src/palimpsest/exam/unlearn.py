"""The fixed work of unlearning: systems forget on models whose retrain oracles are known; scores are gaps to these."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from palimpsest import tiny
from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest
from palimpsest.core.files import write_text
from palimpsest.core.trace import Progress
from palimpsest.exam.unlearn_budgets import budget

SEEDS = (0, 1, 2)  # of each system


@dataclass(frozen=True, kw_only=True)
class UnlearnCase:
    """One request on one task's model.

    Args:
        task: of `palimpsest.tiny.classifiers`. request: which of the task's requests. kind: what is forgotten.
    """

    task: str
    request: int
    kind: str


CASES = (
    UnlearnCase(task="digits", request=0, kind="class"),
    UnlearnCase(task="digits", request=1, kind="samples"),
    UnlearnCase(task="orl", request=0, kind="identity"),
    UnlearnCase(task="faces", request=0, kind="identity"),
    UnlearnCase(task="cifar", request=0, kind="class"),
    UnlearnCase(task="cifar", request=1, kind="samples"),
)

ORACLE = "unlearn/retrain"
ELSEWHERE = {
    ORACLE: "the oracles are its results: the same recipe without what is forgotten",
    "unlearn/blindspot": "is for regressors: see the age-like number of drawn faces below",
    "unlearn/gaussian_amnesiac": "is for regressors: see the age-like number of drawn faces below",
}
"""Systems that the cases above do not fit, and why."""


def run_unlearn(
    what: str, results: Path, *, tasks: Sequence[str] = (), again: bool = False, progress: Progress | None = None
) -> list[Path]:
    """Examines "unlearn" or one system ("unlearn/salun") and writes `results/<id>.json` after each case.

    A run is kept by the content of the system's file and of what it imports, of its budget, of the model with its data
    and of the retrain oracles. A case none of whose oracles is shipped is left out.

    Args:
        tasks: only these; all where none is named.

    Raises:
        BadRequest: the data of a task with due runs are not here.

    Cost: seconds to a minute for each system, case and seed.
    """
    from palimpsest.exam import unlearn_poison, unlearn_values

    systems, wanted = _systems(what), tasks or {c.task for c in CASES}
    cases = [c for c in CASES if c.task in wanted and not missing(c)]
    total, done = len(systems) * len(cases), 0
    if "faces" in wanted and (due := unlearn_values.due(results, _all(what), again)):
        unlearn_values.run(results, due)
    if "digits" in wanted and unlearn_poison.OWNER in systems and unlearn_poison.due(results, again):
        unlearn_poison.run(results)
    for case in cases:
        for system in systems:
            _examine(system, case, results / f"{system}.json", again)
            done += 1
            if progress is not None:
                progress(f"exam of {what}", done, total)
    return [path for system in _all(what) if (path := results / f"{system}.json").is_file()]


def forecast_unlearn(what: str, results: Path, *, again: bool = False) -> list[str]:
    """What `run_unlearn` would do: one line for each run that is due, and for each case that has no oracle."""
    from palimpsest.exam import unlearn_poison, unlearn_values

    lines = [f"{system}: faces, values" for system in unlearn_values.due(results, _all(what), again)]
    lines += [
        f"{o}: digits, poison"
        for o in (unlearn_poison.OWNER,)
        if o in _all(what) and unlearn_poison.due(results, again)
    ]
    for system in _systems(what):
        kept = _kept(results / f"{system}.json")
        due = [(c, s) for c in CASES for s in SEEDS if not missing(c) and (again or _key(system, c, s) not in kept)]
        lines += [f"{system}: {c.task}, {c.kind}, seed {s}" for c, s in due]
    return [*lines, *(f"left out: {why}" for c in CASES if (why := missing(c))), f"{len(lines)} runs are due."]


def missing(case: UnlearnCase) -> str:
    """Why a case cannot be examined; "" where it can."""
    from palimpsest.exam.unlearn_material import oracle_seeds

    if case.task not in tiny.names():
        return f"{case.task} is not among the shipped models"
    if not oracle_seeds(case.task, case.kind):
        return f"no retrain oracle of {case.task}, {case.kind} is shipped"
    return ""


def number(record: Mapping[str, Any], name: str, concept: str = "", field: str = "value") -> float | None:
    """One number of a record; None where it was not measured."""
    found = (n for n in record.get("numbers", ()) if n["name"] == name and n["concept"] == concept)
    return next((n[field] for n in found), None)


def _all(what: str) -> list[str]:
    """The systems that are asked for."""
    if what != "unlearn" and catalog.find(what).id == ORACLE:
        raise BadRequest(f"{what} is not examined: {ELSEWHERE[ORACLE]}.")
    family = [i for i in catalog.entries() if i.startswith("unlearn/")]
    return family if what == "unlearn" else [catalog.find(what).id]


def _systems(what: str) -> list[str]:
    """Those of them that the cases fit."""
    return [system for system in _all(what) if system not in ELSEWHERE]


def _kept(path: Path) -> dict[str, Any]:
    return (
        {c["key"]: c for c in json.loads(path.read_text(encoding="utf-8")).get("cases", ())} if path.is_file() else {}
    )


def _examine(system: str, case: UnlearnCase, path: Path, again: bool) -> None:
    """One system on one case with every seed; where anything was due, records of other content are dropped."""
    from palimpsest.exam.unlearn_material import edited, material, scored

    kept, worked = _kept(path), False
    for seed in SEEDS:
        key = _key(system, case, seed)
        if key in kept and not again:
            continue
        at = material(case.task, case.request)
        found = edited(at, system, budget(system, case.task, case.kind), seed, _edit_key(system, case, seed), again)
        kept[key] = {"case": asdict(case), "seed": seed, "key": key, **scored(at, found)}
        worked = True
    if worked:
        kept = _kept(path) | kept  # what another process wrote meanwhile stays
        present = [kept[k] for c in CASES for s in SEEDS if (k := _key(system, c, s)) in kept]
        stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        write_text(path, json.dumps(stored | {"system": system, "cases": present}, indent=1, sort_keys=True) + "\n")


def _edit_key(system: str, case: UnlearnCase, seed: int) -> str:
    from palimpsest.exam.unlearn_material import edit_key

    parameters = json.dumps(budget(system, case.task, case.kind), sort_keys=True)
    return edit_key(system, case.task, case.request, seed, parameters)


def _key(system: str, case: UnlearnCase, seed: int) -> str:
    from palimpsest.exam.unlearn_material import oracle_digest

    parts = [_edit_key(system, case, seed), oracle_digest(case.task, case.kind)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
