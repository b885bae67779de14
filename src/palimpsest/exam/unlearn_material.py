"""What the exam of unlearning works on: a task's model, the rows it is asked about, and its retrain oracles' answers.

Oracles are references that are shipped with the model; none is trained here. What an edited model answers is kept in
the cache, so that an oracle that comes later is taken in without unlearning again.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from palimpsest import tiny
from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest, PalimpsestError
from palimpsest.core.files import write_beside
from palimpsest.core.fingerprint import raw_bytes
from palimpsest.core.trace import Trace
from palimpsest.data.forget import chosen, split
from palimpsest.data.read import Dataset
from palimpsest.exam.work import source_digest
from palimpsest.probes.classifier_evidence import Answers, Parts, answers, collect_classifier, relearnt
from palimpsest.probes.classifier_readings import classifier_readings
from palimpsest.tiny import assemble, classifiers, references

VERSION = 2  # of what is done to a model and of what is asked; a change of it runs everything again
FIELDS = ("name", "concept", "value", "low", "high", "before", "floor", "n")
DETAILS = ("retrained", "signs", "balanced accuracy", "reached", "budget")


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """One request on one task's model.

    Args:
        task, request: of `palimpsest.tiny.classifiers`. host: the untouched model, of seed 0.
        parts: the samples that are looked at. untouched: what the host answers on them.
        oracles: what models that never saw the forgotten samples answer, by seed. seeds: which these are.
    """

    task: classifiers.Task
    request: int
    host: Any
    parts: Parts
    untouched: Answers
    oracles: tuple[Answers, ...]
    seeds: tuple[int, ...]


@cache
def material(name: str, request: int) -> Material:
    """A task's material.

    Raises:
        BadRequest: no retrain oracle of this request is shipped.
    """
    task = classifiers.TASKS[name]()
    index = looked_at(task, request)
    found = [r for r in references.load(tiny.path(name)) if r.without == references.without(task, request)]
    if not found:
        raise BadRequest(
            f"No model that never saw {references.without(task, request)} is among the references of {name}; train one "
            "with palimpsest.tiny.train_classifier and ship it with palimpsest.tiny.ship_classifiers."
        )
    parts, host = parts_at(task, request, index), classifiers.model(task)
    oracles = [
        Answers(logits={part: r.logits[f"forget {request}" if part == "forget" else part] for part in index})
        for r in found
    ]
    return Material(
        task=task,
        request=request,
        host=host,
        parts=parts,
        untouched=answers(host, parts),
        oracles=tuple(oracles),
        seeds=tuple(r.seed for r in found),
    )


def looked_at(task: classifiers.Task, request: int) -> dict[str, Tensor]:
    """Rows of the task's data for "forget", "retain" and "test": those that the references answered on."""
    rows = references.rows(task)
    return {"forget": rows[f"forget {request}"], "retain": rows["retain"], "test": rows["test"]}


def parts_at(task: classifiers.Task, request: int, index: dict[str, Tensor]) -> Parts:
    """The samples of these rows, as an audit looks at them."""
    asked, train, test = task.forget[request], task.train.samples, task.test.samples[index["test"]]
    forget = train[index["forget"]]
    mask = chosen(task.train, asked)
    gone = sorted(set(train.labels[mask].tolist()) - set(train.labels[~mask].tolist()))
    like = torch.isin(test.labels, forget.labels.unique())
    if asked.kind == "identity" and test.groups:
        like = torch.tensor([group in asked.items for group in test.groups])
    return Parts(forget=forget, retain=train[index["retain"]], test=test, like=like, gone=tuple(gone))


def unlearnt(
    system: str, parameters: dict[str, Any], train: Dataset, request: Any, host: Any, seed: int
) -> tuple[Any, dict[str, Any]]:
    """The patch of one system for one request, and what it cost.

    Raises:
        PalimpsestError: the system refuses.
    """
    trace, start = Trace(), time.process_time()
    data = split(train, request)
    patch = catalog.load(system)(**parameters)(host, request.concepts(), data=data, seed=seed, trace=trace)
    cost = {"cpu_seconds": round(time.process_time() - start, 3), "forwards": sum(trace.forwards.values())}
    cost |= {"passes": round(cost["forwards"] / len(train.samples), 4), "patch_bytes": patch.nbytes()}
    return patch, cost


def edited(
    at: Material, system: str, parameters: dict[str, Any], seed: int, key: str, again: bool = False
) -> dict[str, Any]:
    """What a system's model answers on the material, from the cache or from its work.

    Returns:
        "told": cost, parameters and versions, or "refused"; "answers" and "relearn" where it worked.
    """
    file = assemble.cache() / "unlearnt" / f"{key}.safetensors"
    if again or not file.is_file():
        tensors, told = _work(at, system, parameters, seed)
        write_beside(file, lambda tmp: save_file(tensors, str(tmp), metadata={"told": json.dumps(told)}))
    with safe_open(str(file), framework="pt") as f:
        told = json.loads(f.metadata()["told"])
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (safe_open is no dict)
    if "refused" in told:
        return {"told": told}
    logits, features = (
        {k.split("|")[1]: t for k, t in tensors.items() if k.startswith(what)} for what in ("logits|", "features|")
    )
    return {"told": told, "answers": Answers(logits=logits, features=features), "relearn": tensors.get("relearn")}


def _work(at: Material, system: str, parameters: dict[str, Any], seed: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    request = at.task.forget[at.request]
    try:
        patch, cost = unlearnt(system, parameters, at.task.train, request, at.host, seed)
    except PalimpsestError as e:
        return {"none": torch.zeros(1)}, {"refused": str(e)}
    with patch.applied(at.host):
        told = answers(at.host, at.parts)
        curve = relearnt(at.host, at.parts.forget) if at.parts.gone else None
    tensors = {f"logits|{part}": t.contiguous() for part, t in told.logits.items()}
    tensors |= {"features|test": told.features["test"].contiguous()} if at.parts.gone else {}
    tensors |= {"relearn": curve} if curve is not None else {}
    cost["of_retraining"] = round(cost["passes"] / at.task.recipe.epochs, 4)
    known = {"parameters": patch.provenance["parameters"], "versions": patch.provenance["versions"]}
    return tensors, known | {"cost": cost}


def scored(at: Material, found: dict[str, Any]) -> dict[str, Any]:
    """Readings of an edited model beside the retrain oracles, as plain JSON."""
    if "refused" in found["told"]:
        return {"refused": found["told"]["refused"]}
    relearn = {} if found["relearn"] is None else {"after": found["relearn"]}
    evidence = collect_classifier(
        at.host, found["answers"], at.parts, retrained=at.oracles, untouched=at.untouched, relearn=relearn
    )
    numbers = [
        {f: getattr(r, f) for f in FIELDS} | {k: r.detail[k] for k in DETAILS if k in r.detail}
        for r in classifier_readings(evidence)
        if r.name not in ("confusion", "accuracy of a class")
    ]
    plain = json.dumps(numbers).replace("NaN", "null").replace("-Infinity", "null").replace("Infinity", "null")
    return {**found["told"], "numbers": json.loads(plain), "oracles": list(at.seeds)}


@cache
def edit_key(system: str, task: str, request: int, seed: int, parameters: str) -> str:
    """Of everything that an edit depends on: the system's source, its parameters (JSON), the model and its data."""
    parts = [VERSION, system, task, request, seed, source_digest(catalog.find(system).module), parameters]
    return _hash([*parts, _file_digest(tiny.WEIGHTS / task / "model.safetensors"), _data_digest(task)])


@cache
def oracle_seeds(task: str, kind: str) -> tuple[int, ...]:
    """Seeds of the shipped retrain oracles of a task's request of this kind."""
    return tuple(seed for seed, _ in _oracles(task, kind))


@cache
def oracle_digest(task: str, kind: str) -> str:
    """Of the answers of these oracles."""
    return _hash([list(found) for found in _oracles(task, kind)])


@cache
def _oracles(task: str, kind: str) -> tuple[tuple[int, str], ...]:
    """(seed, digest of the stored answers) of each oracle; read without the task's data."""
    file, prefix = tiny.WEIGHTS / task / references.FILE, {"samples": "random"}.get(kind, kind) + ":"
    if not file.is_file():
        return ()
    with safe_open(str(file), framework="pt") as f:
        told = json.loads(f.metadata()["references"])
        chosen = [(i, t["seed"]) for i, t in enumerate(told) if t["without"].startswith(prefix)]
        names = sorted(f.keys())
        found = []
        for number, seed in chosen:
            digest = hashlib.sha256()
            for name in (n for n in names if n.startswith(f"{number}|")):
                digest.update(raw_bytes(f.get_tensor(name)))
            found.append((seed, digest.hexdigest()))
    return tuple(found)


def _data_digest(task: str) -> str:
    config = tiny.WEIGHTS / task / "config.json"
    return json.loads(config.read_text(encoding="utf-8"))["about"].get("task", "") if config.is_file() else ""


def _file_digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def _hash(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
