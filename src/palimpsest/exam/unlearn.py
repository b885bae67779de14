"""The fixed work of unlearning: systems forget on models whose retrain oracles are known; scores are gaps to these."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from palimpsest.core import catalog
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import write_text
from palimpsest.core.trace import Progress
from palimpsest.exam.unlearn_budgets import CLASS
from palimpsest.exam.work import source_digest

VERSION = 1  # of the work below; a change of it runs everything again
SEEDS = (0, 1, 2)  # of each system, and of the retrain oracles
FORGET, RETAIN, TEST = 1000, 1000, 2000


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
    UnlearnCase(task="faces", request=0, kind="identity"),
    UnlearnCase(task="orl", request=0, kind="identity"),
    UnlearnCase(task="cifar", request=0, kind="class"),
    UnlearnCase(task="cifar", request=1, kind="samples"),
)


def run_unlearn(
    what: str, results: Path, *, tasks: Sequence[str] = (), again: bool = False, progress: Progress | None = None
) -> list[Path]:
    """Examines "unlearn" or one system ("unlearn/salun") and writes `results/<id>.json` after each case.

    A case is kept by the content of the system's file and of what it imports, of its budget and of this work.

    Args:
        tasks: only these; all where none is named. A task whose data are not here is an error.

    Cost: seconds to a minute for each system, case and seed; oracles are trained on first use.
    """
    systems = _systems(what)
    work = [(c, s) for c in CASES if c.task in (tasks or {c.task for c in CASES}) for s in SEEDS]
    total, done = len(systems) * len(work), 0
    for system in systems:
        path = results / f"{system}.json"
        kept = _kept(path)
        for case, seed in work:
            key = _key(system, case, seed)
            if again or key not in kept:
                kept[key] = {"case": asdict(case), "seed": seed, "key": key, **_examine(system, case, seed)}
                present = [kept[k] for c in CASES for s in SEEDS if (k := _key(system, c, s)) in kept]
                text = json.dumps({"system": system, "work": VERSION, "cases": present}, indent=1, sort_keys=True)
                write_text(path, text + "\n")
            done += 1
            if progress is not None:
                progress(f"exam of {what}", done, total)
    return [results / f"{system}.json" for system in systems]


def forecast_unlearn(what: str, results: Path, *, again: bool = False) -> list[str]:
    """What `run_unlearn` would do: one line for each run that is due."""
    lines = []
    for system in _systems(what):
        kept = _kept(results / f"{system}.json")
        due = [(c, s) for c in CASES for s in SEEDS if again or _key(system, c, s) not in kept]
        lines += [f"{system}: {c.task}, {c.kind}, seed {s}" for c, s in due]
    return [*lines, f"{len(lines)} runs are due."]


def _systems(what: str) -> list[str]:
    family = [i for i in catalog.entries() if i.startswith("unlearn/")]
    return family if what == "unlearn" else [catalog.find(what).id]


def _kept(path: Path) -> dict[str, Any]:
    return {c["key"]: c for c in json.loads(path.read_text(encoding="utf-8"))["cases"]} if path.is_file() else {}


def _examine(system: str, case: UnlearnCase, seed: int) -> dict[str, Any]:
    """Readings of one run as plain JSON; a system that refuses the case is recorded with its words."""
    from palimpsest.core.trace import Trace
    from palimpsest.data.forget import split
    from palimpsest.probes.classifier_evidence import collect_classifier
    from palimpsest.probes.classifier_readings import classifier_readings

    task, host, parts, untouched, oracles = _material(case)
    request, trace = task.forget[case.request], Trace()
    start = time.process_time()
    try:
        method = catalog.load(system)(**CLASS.get(system, {}))
        patch = method(host, request.concepts(), data=split(task.train, request), seed=seed, trace=trace)
    except PalimpsestError as e:
        return {"refused": str(e)}
    seconds = time.process_time() - start
    evidence = collect_classifier(host, patch, parts, retrained=oracles, untouched=untouched, relearn=False)
    fields = ("name", "concept", "value", "low", "high", "before", "floor", "n")
    rows = [
        {f: getattr(r, f) for f in fields} | {k: r.detail[k] for k in ("retrained", "signs") if k in r.detail}
        for r in classifier_readings(evidence)
        if r.name not in ("confusion", "accuracy of a class")
    ]
    cost = {"cpu_seconds": round(seconds, 3), "forwards": dict(trace.forwards), "patch_bytes": patch.nbytes()}
    cost["passes"] = round(sum(trace.forwards.values()) / len(task.train.samples), 3)
    return {
        "parameters": patch.provenance["parameters"],
        "versions": patch.provenance["versions"],
        "numbers": json.loads(json.dumps(rows).replace("NaN", "null").replace("-Infinity", "null")),
        "cost": cost | {"of_retraining": round(cost["passes"] / task.recipe.epochs, 4)},
    }


@cache
def _material(case: UnlearnCase) -> tuple[Any, Any, Any, Any, list[Any]]:
    """The task, its model, the samples that are looked at, the model's and its retrain oracles' answers on them."""
    from palimpsest.data.forget import split
    from palimpsest.probes.classifier_evidence import answers, parts_of
    from palimpsest.tiny import classifiers

    task = classifiers.TASKS[case.task]()
    request = task.forget[case.request]
    host = classifiers.model(task)
    named = request.items if request.kind == "identity" else ()
    parts = parts_of(
        split(task.train, request), task.test.samples, len(task.train.classes), identities=named,
        forget=FORGET, retain=RETAIN, tests=TEST,
    )  # fmt: skip
    oracles = [answers(classifiers.model(task, seed=s, without=request), parts) for s in SEEDS]
    return task, host, parts, answers(host, parts), oracles


@cache
def _key(system: str, case: UnlearnCase, seed: int) -> str:
    entry = catalog.find(system)
    parts = [VERSION, asdict(case), seed, source_digest(entry.module), CLASS.get(system)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def number(record: Mapping[str, Any], name: str, concept: str = "", field: str = "value") -> float | None:
    """One number of a record; None where it was not measured."""
    found = (n for n in record.get("numbers", ()) if n["name"] == name and n["concept"] == concept)
    return next((n[field] for n in found), None)
