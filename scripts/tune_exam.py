"""Find the exam's budgets of unlearning, on work that the exam does not judge.

    python scripts/tune_exam.py --cases "digits, class" --only unlearn/salun

The candidates of a system (its budget's "tries") are tried one after another, until one scores at most GOOD; the least
score is written into its budget's file at once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import write_text
from palimpsest.data.forget import split
from palimpsest.exam import budgets
from palimpsest.exam.case import Case
from palimpsest.exam.material import unlearnt
from palimpsest.exam.verbs.unlearn import EXAM
from palimpsest.ops import membership
from palimpsest.probes.answered import Parts, parts_of
from palimpsest.tiny import classifiers
from palimpsest.train.classify import all_seen

GOOD = 1.0  # a point of held-out accuracy weighs 0.33, one of the forget set 0.2
LOOKED = {"forget": 500, "retain": 100, "tests": 1000}  # samples that a trial looks at
SEED = 10  # none of the exam's
STEPS = {
    "cifar": (60, 20),
    "": (12, 50),
}  # tried with each rate; on CIFAR-10 all are far below a twentieth of retraining


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=[], help="only these, as the tables call them")
    parser.add_argument("--only", nargs="*", default=[], help="only these systems")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for case in EXAM.cases:
        if not asked.cases or EXAM.words(case) in asked.cases:
            tune(case, asked.only)


def tune(case: Case, only: Sequence[str] = ()) -> None:
    """Tries all candidates of a case and writes the best of each system at once."""
    words = EXAM.words(case)
    for system in only or EXAM.examined():
        tried = []
        for parameters in candidates(system, case["task"]):
            try:
                tried.append(score(system, parameters, case))
            except PalimpsestError as e:
                print(system, parameters, str(e)[:80], flush=True)
                continue
            print(system, json.dumps(tried[-1]), flush=True)
            if tried[-1]["score"] <= GOOD:
                break
        if tried:
            keep(system, words, min(tried, key=lambda t: t["score"]) | {"tried": len(tried)})


def candidates(system: str, task: str) -> list[dict[str, Any]]:
    """Everything that is tried for a system on a task, in order.

    A file's "tries" has `all`, fields of every candidate, `<task>`, fields on that task, `first`, a candidate before
    all others on a task, and either `listed`, whole candidates (of all tasks, or by task), or `lr` x steps of the task
    x `other` fields.
    """
    tries = data(system)["tries"]
    listed = tries.get("listed") or [
        {"lr": lr, "steps": steps, **other}
        for lr, steps, other in product(tries["lr"], STEPS.get(task, STEPS[""]), tries.get("other", [{}]))
    ]
    listed = listed[task] if isinstance(listed, dict) else listed
    first = [tries["first"][task]] if task in tries.get("first", {}) else []
    return [{**tries.get("all", {}), **tries.get(task, {}), **c} for c in (*first, *listed)]


def keep(system: str, case: str, best: Mapping[str, Any]) -> Path:
    """Writes what was found for a case."""
    known = data(system)
    known.setdefault("cases", {})[case] = best
    return write_text(budgets.FOLDER / f"{system}.json", json.dumps(known, indent=1, sort_keys=True) + "\n")


def data(system: str) -> dict[str, Any]:
    """What a budget's file holds."""
    return json.loads((budgets.FOLDER / f"{system}.json").read_text(encoding="utf-8"))


def score(system: str, parameters: Mapping[str, Any], case: Case) -> dict[str, Any]:
    """How parameters do on the task's `tune` request, which the exam does not judge; "score", least is best:

        |forget gap| / 5 + (held-out accuracy lost) / 3 + 10 |AUC - AUC of retraining| + 2 (share of its passes)

    Gaps in points are to a model retrained without the request, AUC is of the membership attack by the label's margin
    (left out where classes are forgotten: without an answer of their own, their samples are all alike). Where
    retraining takes long (CIFAR-10), what it would answer is taken as known: a class that it never saw in 0 %, single
    samples as often as held-out ones, and nobody tells them apart.

    Raises:
        PalimpsestError: the system refuses.
    """
    task, request, host, parts, goal = tuning(case["task"], case["request"])
    patch, cost = unlearnt(system, parameters, task.train, request, host, SEED)
    with patch.applied(host):
        forget, test, area = accuracies(host, parts)
    share = cost["passes"] / task.recipe.epochs
    loss = abs(forget - goal[0]) / 5 + max(0.0, goal[1] - test) / 3 + 2 * share
    loss += 0.0 if parts.gone else 10 * abs(area - goal[2])
    told = {"forget": forget, "test": test, "auc": area, "of_retraining": round(share, 4), "goal": list(goal)}
    return {"score": round(loss, 4), "parameters": dict(parameters), **told}


@cache
def tuning(name: str, number: int) -> tuple[classifiers.Task, Any, Any, Parts, tuple[float, float, float]]:
    """A task, its request for tuning, the model, the samples looked at, and what retraining would reach on them."""
    task = classifiers.TASKS[name]()
    request, host = task.tune[number], classifiers.model(task)
    identities = request.items if request.kind == "identity" else ()
    data, classes = split(task.train, request), len(task.train.classes)
    parts = parts_of(data, task.test.samples, classes, identities=identities, seed=1, **LOOKED)
    if name != "cifar":
        return task, request, host, parts, accuracies(classifiers.model(task, without=request), parts)
    held_out = accuracies(host, parts)[1]
    return task, request, host, parts, (0.0 if request.kind == "class" else held_out, held_out, 0.5)


def accuracies(host: Any, parts: Parts) -> tuple[float, float, float]:
    """Accuracy in percent on forgotten samples and on held-out ones of kept classes, and the attack's area."""
    forget, test = all_seen(host, parts.forget)[1], all_seen(host, parts.test)[1]
    kept = ~torch.isin(parts.test.labels, torch.tensor(parts.gone, dtype=torch.int64))
    margins = [membership.margin(forget, parts.forget.labels), membership.margin(test, parts.test.labels)[parts.like]]
    right = [
        round(100 * float((logits.argmax(1) == labels).float().mean()), 2)
        for logits, labels in ((forget, parts.forget.labels), (test[kept], parts.test.labels[kept]))
    ]
    return right[0], right[1], round(membership.auc(margins[0], margins[1]).value, 4)


if __name__ == "__main__":
    main()
