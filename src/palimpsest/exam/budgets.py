"""How a system is examined: settings as data, `budgets/<verb>/<leaf>.json`, beside no code.

A model of 7 M parameters needs another budget than one of 860 M. None of them may be found on what the exam judges: not
on its concepts (others are "heart", "purple", "sketch", "Nia"), classes, samples, people or seeds. A file holds

    parameters   in every case                     cases    {case: {"parameters": beside these, and how it was tuned}}
    why          in words                          cause    likely, where it falls short of its rule
    study        that measures its claim in place of the verb's exam
    elsewhere    why the verb's exam leaves it out
    rule         {"name": one of the verb's RULES, and what that takes}, where its claim is another than the verb's
    tries        what scripts/tune_exam.py tries
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_suffix("")


def parameters(system: str, case: str) -> dict[str, Any]:
    """A system's settings in a case ("star", "digits, class", "many"), as `Method.from_plain` takes them."""
    data = _data(system)
    return {**data.get("parameters", {}), **data.get("cases", {}).get(case, {}).get("parameters", {})}


def said(system: str, what: str) -> Any:
    """What a system's file says of "cause", "study", "elsewhere" or "rule"; "" where it says nothing."""
    return _data(system).get(what, "")


def tuned(system: str, case: str) -> dict[str, Any] | None:
    """How the settings of a case were found: `score` and what it is made of; None where nothing was tried."""
    found = _data(system).get("cases", {}).get(case, {})
    return found if "score" in found else None


@cache
def _data(system: str) -> dict[str, Any]:
    file = FOLDER / f"{system}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
