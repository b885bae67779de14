"""Find the exam's budgets of unlearning: `python -m palimpsest.exam.tune_unlearn digits orl faces cifar`.

The candidates of `unlearn_budgets` forget the task's `tune` request, which the exam does not judge, one after another
until one scores at most 1. The least score,

    |forget gap| / 5 + (held-out accuracy lost) / 3 + 10 |AUC - AUC of retraining| + 2 (share of retraining's passes)

is taken: gaps in points to a model retrained without the request, AUC of the membership attack by the label's margin
(left out where classes are forgotten: without an answer of their own, their samples are all alike).
Where retraining takes long (CIFAR-10), what it would answer is taken as known: a class that it never saw in 0 %, single
samples as often as held-out ones, and nobody tells them apart.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from palimpsest.core import catalog
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import write_text
from palimpsest.data.forget import split
from palimpsest.exam.unlearn import CASES, ELSEWHERE, UnlearnCase
from palimpsest.exam.unlearn_budgets import FILE, candidates
from palimpsest.exam.unlearn_material import unlearnt
from palimpsest.ops import membership
from palimpsest.probes.classifier_evidence import Parts, parts_of
from palimpsest.tiny import classifiers
from palimpsest.train.classify import all_seen

SEED = 10  # none of the exam's
GOOD = 1.0  # a point of held-out accuracy weighs 0.33, one of the forget set 0.2, a twentieth of retraining 0.1
LOOKED = (500, 100, 1000)  # forgotten, kept, held-out samples


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--kind", default="", help="only this kind of request")
    parser.add_argument("--only", default="", help="only these systems, separated by commas")
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    for case in CASES:
        if case.task in asked.tasks and asked.kind in ("", case.kind):
            tune(case, [f"unlearn/{name}" for name in asked.only.split(",") if name])


def tune(case: UnlearnCase, only: Sequence[str] = ()) -> None:
    """Tries all candidates of a case and writes the best of each system at once."""
    task = classifiers.TASKS[case.task]()
    request = task.tune[case.request]
    host = classifiers.model(task)
    identities = request.items if request.kind == "identity" else ()
    forget, retain, tests = LOOKED
    parts = parts_of(
        split(task.train, request), task.test.samples, len(task.train.classes), identities=identities,
        forget=forget, retain=retain, tests=tests, seed=1,
    )  # fmt: skip
    goal = _goal(task, case, parts, host)
    print(f"{case.task}, {case.kind}: untouched {_seen(host, parts)}, goal {goal}", flush=True)
    for system in only or [i for i in catalog.entries() if i.startswith("unlearn/") and i not in ELSEWHERE]:
        tried: list[dict[str, Any]] = []
        for parameters in candidates(system, case.task):
            try:
                patch, cost = unlearnt(system, parameters, task.train, request, host, SEED)
            except PalimpsestError as e:
                print(system, parameters, str(e)[:80], flush=True)
                continue
            with patch.applied(host):
                found = _seen(host, parts)
            share = cost["passes"] / task.recipe.epochs
            score = abs(found[0] - goal[0]) / 5 + max(0.0, goal[1] - found[1]) / 3
            score += 0.0 if parts.gone else 10 * abs(found[2] - goal[2])
            told = {"forget": found[0], "test": found[1], "auc": found[2], "of_retraining": round(share, 4)}
            tried.append({"score": round(score + 2 * share, 4), "parameters": parameters, **told})
            print(system, json.dumps(tried[-1]), f"{cost['cpu_seconds']} s", flush=True)
            if score + 2 * share <= GOOD:
                break
        if tried:
            _keep(case, system, min(tried, key=lambda t: t["score"]) | {"tried": len(tried), "goal": list(goal)})


def _goal(task: classifiers.Task, case: UnlearnCase, parts: Parts, host: Any) -> tuple[float, float, float]:
    if case.task != "cifar":
        return _seen(classifiers.model(task, without=task.tune[case.request]), parts)
    held_out = _seen(host, parts)[1]
    return (0.0 if case.kind == "class" else held_out, held_out, 0.5)


def _seen(host: Any, parts: Parts) -> tuple[float, float, float]:
    """Accuracy in percent on forgotten samples and on held-out ones of kept classes, and the attack's area."""
    forget, test = all_seen(host, parts.forget)[1], all_seen(host, parts.test)[1]
    kept = ~torch.isin(parts.test.labels, torch.tensor(parts.gone, dtype=torch.int64))
    margins = [membership.margin(forget, parts.forget.labels), membership.margin(test, parts.test.labels)[parts.like]]
    area = membership.auc(margins[0], margins[1]).value
    return _right(forget, parts.forget.labels), _right(test[kept], parts.test.labels[kept]), round(area, 4)


def _right(logits: Tensor, labels: Tensor) -> float:
    return round(100 * float((logits.argmax(1) == labels).float().mean()), 2)


def _keep(case: UnlearnCase, system: str, best: dict[str, Any]) -> None:
    found = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    found.setdefault(f"{case.task}, {case.kind}", {})[system] = best
    write_text(FILE, json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
