"""Records as an exam writes them, and work for processes that die."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from palimpsest.exam.case import Exam

SEEDS = (0, 1, 2)
YES, NO, HALF = "1" * 20, "0" * 20, "10" * 10


def case(concept: str, seed: int, target: str, neighbour: str = "1111", oracle: str = "") -> dict[str, Any]:
    """A record of one erasure: four pictures of the target, four of a neighbour."""
    groups = [
        {"role": "target", "concept": concept, "judge": "j", "before": "1" * len(target), "after": target},
        {"role": "neighbour", "concept": "near", "judge": "j", "before": "1" * len(neighbour), "after": neighbour},
        {"role": "unrelated", "concept": "far", "judge": "j", "before": "1111", "after": "1111"},
    ]
    if oracle:
        groups[0]["oracle"] = oracle
    return {
        "case": {"host": "h", "concept": concept, "kind": "object", "oracle": "o"},
        "seed": seed,
        "groups": groups,
        "numbers": [{"name": "pixel drift", "role": "unrelated", "value": 5.0, "before": None, "floor": 50.0}],
        "cost": {"seconds": 2.0, "forwards": {"denoiser": 6}, "peak_bytes": 2**20, "patch_bytes": 1, "tensors": 1},
    }


def three(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same record for every seed."""
    return [{"seed": seed, **record} for seed in SEEDS]


def put(results: Path, study: str, **systems: Mapping[str, Any]) -> None:
    """A study's file: the same record of each system for every seed."""
    records = [
        {"system": s.replace("__", "/"), "key": f"{s}{r['seed']}", **r} for s, x in systems.items() for r in three(x)
    ]
    write(results / "studies" / f"{study}.json", {"study": study, "records": records})


def write(path: Path, stored: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(stored))


def small(name: str = "small", **more: Any) -> Exam:
    """An exam whose work is nothing: two cases of two stand-ins."""
    fields: dict[str, Any] = {
        "verb": "erase",
        "cases": ({"n": 1, "name": "case 1"}, {"n": 2, "name": "case 2"}),
        "seeds": (0, 1),
        "examine": examine,
        "systems": ("one", "other"),
        "called": ("name",),
        "label": "case",
    }
    return Exam(name=name, **{**fields, **more})


def examine(system: str, case: Mapping[str, Any], seed: int) -> dict[str, Any]:
    return {"value": 10 * case["n"] + seed}


def dies(item: tuple[str, str, int]) -> str:
    """A piece of work whose process is killed the first `times` times."""
    folder, name, times = item
    marks = sorted(Path(folder).glob(f"{name}.*"))
    if len(marks) < times:
        (Path(folder) / f"{name}.{len(marks)}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return name


def threads(item: int) -> tuple[int, str]:
    """(process, the threads that torch will take there)."""
    return os.getpid(), os.environ["OMP_NUM_THREADS"]


def script(name: str) -> Any:
    """A module of scripts/."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(lines: Sequence[str], words: str) -> str:
    """The first row of a table that holds some words."""
    return next(line for block in lines for line in block.splitlines() if words in line and line.startswith("|"))
