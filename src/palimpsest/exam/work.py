"""The fixed work of a family, done once for all its systems and kept by content."""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest, PalimpsestError
from palimpsest.core.files import write_text
from palimpsest.core.trace import Progress

VERSION = 1  # of the work below; a change of it runs everything again
SEEDS = (0, 1, 2)
PROMPTS = 20  # for each target and seed
# Neither methods nor their defaults may be chosen on these concepts: use others ("heart", "purple", "sketch", "Nia").

# What a paper's budget is for a model of 860 M parameters is another for one of 7 M. Found on "heart" and "purple".
BUDGETS: dict[str, dict[str, Any]] = {
    "erase/esd": {"steps": 150, "lr": 3e-4, "batch": 4, "walk_steps": 20},
    "erase/sld": {"strength": "max"},  # the setting of the paper's headline; weaker ones left "purple" in 75 % and more
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One concept on one model."""

    host: str
    concept: str
    kind: str
    oracle: str  # a model that never saw the concept; used where it is shipped


CASES: dict[str, tuple[Case, ...]] = {
    "erase": (
        Case(host="tiny/sd", concept="star", kind="object", oracle="tiny/sd-without-star"),
        Case(host="tiny/sd", concept="blue", kind="colour", oracle="tiny/sd-without-blue"),
        Case(host="tiny/sd", concept="watercolour", kind="style", oracle="tiny/sd-without-watercolour"),
        Case(host="tiny/portraits", concept="Aisha", kind="identity", oracle="tiny/portraits-without-Aisha"),
    ),
}


def run(what: str, results: Path, *, again: bool = False, progress: Progress | None = None) -> list[Path]:
    """Examines a family ("erase") or one system ("erase/uce") and writes `results/<id>.json` for each system.

    A system's cases are kept by the content of its file and of what it imports, of the model, and of this work, so
    only what changed runs again. Cases spread over processes, one thread each.

    Raises:
        BadRequest: no such family or system.
    """
    systems = _systems(what)
    family = systems[0].split("/")[0]
    kept = {system: _kept(system, results) for system in systems}
    todo: list[tuple[Case, int, tuple[str, ...]]] = []
    for case in CASES[family]:
        for seed in SEEDS:
            due = tuple(s for s in systems if again or _key(s, case, seed) not in kept[s])
            if due:
                todo.append((case, seed, due))
    for done, (case, seed, found) in enumerate(_spread(todo), start=1):
        for system, record in found.items():
            kept[system][_key(system, case, seed)] = record
            _write(system, kept[system], results)
        if progress is not None:
            progress(f"exam of {what}", done, len(todo))
    return [_write(system, kept[system], results) for system in systems]


def examine(case: Case, seed: int, systems: Sequence[str]) -> dict[str, Any]:
    """Runs systems on one case with one seed; the untouched and the never-saw model are drawn once for all of them.

    Returns:
        For each system: presence bits of every picture by group, drift, distances and cost, as plain JSON. A system
        that refuses the case is recorded with its words.
    """
    from palimpsest import run as verbs
    from palimpsest.core.trace import Trace
    from palimpsest.probes import plan as planning
    from palimpsest.probes.evaluators import judges_for
    from palimpsest.probes.evidence import collect
    from palimpsest.worlds.concepts import world_of

    host = _host(case.host)
    request = verbs.request(host, case.concept)
    plan = planning.plan(
        host,
        request,
        world=world_of(getattr(host, "folder", None)),
        prompts_per_concept=PROMPTS,
        seeds=1,
        first_seed=100_000 * (seed + 1),
    )
    judges, oracle = judges_for(host), _oracle(case)
    drawn = None
    found: dict[str, Any] = {}
    for system in systems:
        try:
            patch = method_of(system)(host, request, seed=seed, trace=Trace())
        except PalimpsestError as e:
            found[system] = {"case": asdict(case), "seed": seed, "refused": str(e)}
            continue
        evidence = collect(host, patch, plan, judges, oracle=oracle, drawn=drawn)
        drawn = evidence.pictures
        found[system] = {"case": asdict(case), "seed": seed, **_record(evidence, patch)}
    return found


def _record(evidence: Any, patch: Any) -> dict[str, Any]:
    from palimpsest.probes.drift import Drift
    from palimpsest.probes.oracle_gap import OracleGap

    groups = []
    for g, judge, classes in evidence.asked():
        group = evidence.plan.groups[g]
        rows = evidence.plan.rows(group=g)
        bits = {
            which: "".join(str(int(b)) for b in evidence.present(judge, which, classes)[rows])
            for which in ("before", "after", "oracle")
            if which in evidence.pictures
        }
        groups.append({"role": group.role, "concept": group.name, "judge": judge, **bits})
    numbers = [
        {"name": r.name, "role": r.role, "value": r.value, "before": r.before, "floor": r.floor}
        for probe in (Drift(), OracleGap())
        for r in probe.run(evidence)
        if r.unit != "%"
    ]
    cost = {k: patch.provenance[k] for k in ("seconds", "forwards", "peak_bytes")}
    return {
        "parameters": patch.provenance["parameters"],
        "versions": patch.provenance["versions"],
        "base": patch.base,
        "groups": groups,
        "numbers": numbers,
        "cost": {**cost, "patch_bytes": patch.nbytes(), "tensors": len(patch.deltas)},
    }


def method_of(system: str) -> Any:
    """The system with its own defaults, or with the budget that the small models need."""
    return catalog.load(system)(**BUDGETS.get(system, {}))


def _systems(what: str) -> list[str]:
    if what in CASES:
        return [i for i in catalog.entries() if i.startswith(what + "/")]
    entry = catalog.find(what)
    if entry.id.split("/")[0] not in CASES:
        raise BadRequest(f"There is no exam for {entry.id.split('/')[0]}; there is one for {', '.join(CASES)}.")
    return [entry.id]


def _spread(todo: Sequence[tuple[Case, int, tuple[str, ...]]]) -> Iterator[tuple[Case, int, dict[str, Any]]]:
    """Results as they come. Each process computes with one thread: more would slow each other many times over."""
    workers = min(len(todo), os.cpu_count() or 1)
    if workers <= 1:
        yield from ((case, seed, examine(case, seed, systems)) for case, seed, systems in todo)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        jobs: dict[Future[dict[str, Any]], tuple[Case, int]] = {
            pool.submit(examine, case, seed, systems): (case, seed) for case, seed, systems in todo
        }
        for job in as_completed(jobs):
            yield (*jobs[job], job.result())


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@lru_cache(maxsize=2)
def _host(name: str) -> Any:
    from palimpsest.hosts.detect import load

    return load(name)


def _oracle(case: Case) -> Any:
    from palimpsest import tiny

    return _host(case.oracle) if case.oracle.removeprefix("tiny/") in tiny.names() else None


def _kept(system: str, results: Path) -> dict[str, Any]:
    path = results / f"{system}.json"
    if not path.is_file():
        return {}
    return {c["key"]: c for c in json.loads(path.read_text(encoding="utf-8"))["cases"]}


def _write(system: str, cases: dict[str, Any], results: Path) -> Path:
    """The cases of the present content only, in the order of the work."""
    family = system.split("/")[0]
    current = [_key(system, case, seed) for case in CASES[family] for seed in SEEDS]
    ordered = [{**cases[k], "key": k} for k in current if k in cases]
    text = json.dumps({"system": system, "work": VERSION, "cases": ordered}, indent=1, sort_keys=True)
    return write_text(results / f"{system}.json", text + "\n")


@cache
def _key(system: str, case: Case, seed: int) -> str:
    model = [_model_digest(case.host), _model_digest(case.oracle)]
    parts = [
        VERSION,
        PROMPTS,
        seed,
        asdict(case),
        source_digest(catalog.find(system).module),
        BUDGETS.get(system),
        *model,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@cache
def _model_digest(name: str) -> str:
    """Of all files of a shipped model; "" where it is not shipped."""
    from palimpsest import tiny

    if name.removeprefix("tiny/") not in tiny.names():
        return ""
    h = hashlib.sha256()
    for file in sorted(p for p in tiny.path(name.removeprefix("tiny/")).rglob("*") if p.is_file()):
        h.update(file.name.encode())
        h.update(file.read_bytes())
    return h.hexdigest()


@cache
def source_digest(module: str) -> str:
    """Of a system's source and of everything it imports from ops/, train/ and its own verb, directly or not."""
    seen: dict[str, str] = {}
    queue = [module]
    while queue:
        name = queue.pop()
        path = catalog.ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py")
        if name in seen or not path.is_file():
            continue
        seen[name] = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(seen[name])):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("palimpsest."):
                imported = [str(node.module), *(f"{node.module}.{a.name}" for a in node.names)]
                queue += [m for m in imported if m.split(".")[1] in ("ops", "train", *catalog.VERBS)]
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()
