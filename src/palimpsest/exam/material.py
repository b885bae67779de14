"""What the exam of unlearning works on: a task's model, the samples it is asked about, its retrain oracles' answers.

Oracles are references that are shipped with the model; none is trained here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from palimpsest import tiny
from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest
from palimpsest.core.trace import Trace
from palimpsest.data.forget import chosen, split
from palimpsest.data.read import Dataset
from palimpsest.exam.case import Case
from palimpsest.probes.answered import Answers, Parts, answers
from palimpsest.tiny import classifiers, references


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """One request on one task's model.

    Args:
        task, request: of `palimpsest.tiny.classifiers`. host: the untouched model, of seed 0.
        parts: the samples that are looked at. untouched: what the host answers on them.
        oracles: what models that never saw the forgotten samples answer. seeds: of these models.
    """

    task: classifiers.Task
    request: Any
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
    never = references.without(task, request)
    oracles = [r for r in references.load(tiny.path(name)) if r.without == never]
    if not oracles:
        raise BadRequest(
            f"No model that never saw {never} is among the references of {name}; train one "
            "with palimpsest_models.train_classifier and ship it with palimpsest_models.ship_classifiers."
        )
    rows = references.rows(task)
    index = {"forget": f"forget {request}", "retain": "retain", "test": "test"}
    parts, host = _parts(task, request, {part: rows[row] for part, row in index.items()}), classifiers.model(task)
    return Material(
        task=task,
        request=task.forget[request],
        host=host,
        parts=parts,
        untouched=answers(host, parts),
        oracles=tuple(Answers(logits={part: r.logits[row] for part, row in index.items()}) for r in oracles),
        seeds=tuple(r.seed for r in oracles),
    )


def _parts(task: classifiers.Task, request: int, rows: Mapping[str, torch.Tensor]) -> Parts:
    """The samples that the references answered on, as an audit looks at them."""
    asked, train, test = task.forget[request], task.train.samples, task.test.samples[rows["test"]]
    forget, mask = train[rows["forget"]], chosen(task.train, asked)
    gone = sorted(set(train.labels[mask].tolist()) - set(train.labels[~mask].tolist()))
    like = torch.isin(test.labels, forget.labels.unique())
    if asked.kind == "identity" and test.columns.get("identity"):
        like = torch.tensor([group in asked.items for group in test.columns["identity"]])
    return Parts(forget=forget, retain=train[rows["retain"]], test=test, like=like, gone=tuple(gone))


def unlearnt(
    system: str, parameters: Mapping[str, Any], train: Dataset, request: Any, host: Any, seed: int
) -> tuple[Any, dict[str, Any]]:
    """The patch of one system for one request, and what it cost.

    Raises:
        PalimpsestError: the system refuses.
    """
    trace, start = Trace(), time.process_time()
    data = split(train, request)
    patch = catalog.load(system).from_plain(parameters)(host, request.concepts(), data=data, seed=seed, trace=trace)
    cost = {"cpu_seconds": round(time.process_time() - start, 3), "forwards": sum(trace.forwards.values())}
    return patch, cost | {"passes": round(cost["forwards"] / len(train.samples), 4), "patch_bytes": patch.nbytes()}


def missing(case: Case) -> str:
    """Why a case cannot be examined: no model or no retrain oracle is shipped; "" where it can."""
    task, kind = case["task"], case["kind"]
    if task not in tiny.names():
        return f"{task} is not among the shipped models"
    prefix = ("random" if kind == "samples" else kind) + ":"
    known = any(r.without.startswith(prefix) for r in references.load(tiny.path(task)))
    return "" if known else f"no retrain oracle of {task}, {kind} is shipped"
