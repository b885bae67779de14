"""How much work a system gets in the exam: settings as data, `budgets/<verb>/<leaf>.json`, beside no code.

A model of 7 M parameters needs another budget than one of 860 M. None of them may be found on what the exam judges: not
on its concepts (others are "heart", "purple", "sketch", "Nia"), classes, samples, people or seeds. A file holds

    parameters   in every case                     cases    {case: {"parameters": beside these, and how it was tuned}}
    why          in words                          cause    likely, where it falls short of the verb's rule
    tries        for `tune`: what is tried, as `candidates` reads it
"""

from __future__ import annotations

import json
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from palimpsest.core.files import write_text

FOLDER = Path(__file__).with_suffix("")
STEPS = {
    "cifar": (60, 20),
    "": (12, 50),
}  # tried with each rate; on CIFAR-10 all are far below a twentieth of retraining


def parameters(system: str, case: str) -> dict[str, Any]:
    """A system's settings in a case ("star", "digits, class", "many"): what was found, or the first that is tried."""
    data = _data(system)
    beside = data.get("cases", {}).get(case, {}).get("parameters")
    if beside is None and "tries" in data and "," in case:
        beside = candidates(system, case.split(",")[0])[0]
    return _with_tuples({**data.get("parameters", {}), **(beside or {})})


def cause(system: str) -> str:
    """Why a system likely falls short of its verb's rule, where it does; nothing of it is proved."""
    return _data(system).get("cause", "")


def tuned(system: str, case: str) -> dict[str, Any] | None:
    """How the settings of a case were found: `score` and what it is made of; None where nothing was tried."""
    found = _data(system).get("cases", {}).get(case, {})
    return found if "score" in found else None


def candidates(system: str, task: str) -> list[dict[str, Any]]:
    """Everything that is tried for a system on a task, in order.

    A file's "tries" has `all`, fields of every candidate, `<task>`, fields on that task, `first`, a candidate before
    all others on a task, and either `listed`, whole candidates (of all tasks, or by task), or `lr` x steps of the task
    x `other` fields.
    """
    tries = _data(system)["tries"]
    listed = tries.get("listed") or [
        {"lr": lr, "steps": steps, **other}
        for lr, steps, other in product(tries["lr"], STEPS.get(task, STEPS[""]), tries.get("other", [{}]))
    ]
    listed = listed[task] if isinstance(listed, dict) else listed
    first = [tries["first"][task]] if task in tries.get("first", {}) else []
    return [_with_tuples({**tries.get("all", {}), **tries.get(task, {}), **c}) for c in (*first, *listed)]


def keep(system: str, case: str, best: dict[str, Any]) -> Path:
    """Writes what was found for a case."""
    data = _data(system)
    data.setdefault("cases", {})[case] = best
    _data.cache_clear()
    return write_text(FOLDER / f"{system}.json", json.dumps(data, indent=1, sort_keys=True) + "\n")


@cache
def _data(system: str) -> dict[str, Any]:
    file = FOLDER / f"{system}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
