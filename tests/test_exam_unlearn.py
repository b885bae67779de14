"""The exam of unlearning: its verdicts, its table, and what is due."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from palimpsest.exam.unlearn import CASES, SEEDS, forecast_unlearn
from palimpsest.exam.unlearn_table import section, verdict


def record(forget: float, test: float, overdone: float = 0.0, seed: int = 0) -> dict[str, Any]:
    rows = [
        ("gap to retrained models", "forget set", forget),
        ("gap to retrained models", "held-out, kept classes", test),
        ("overdone forgetting", "", overdone),
    ]
    numbers = [{"name": n, "concept": c, "value": v, "before": 100.0} for n, c, v in rows]
    cost = {"cpu_seconds": 1.0, "passes": 0.2, "of_retraining": 0.02}
    return {"case": {"task": "digits", "request": 0, "kind": "class"}, "seed": seed, "numbers": numbers, "cost": cost}


def test_verdicts_follow_the_bounds() -> None:
    def of(*args: float) -> tuple[str, str]:
        return verdict([record(*args, seed=s) for s in SEEDS])

    assert of(4.9, -2.9) == ("holds", "")
    assert of(5.1, 0.0) == ("fails", "forget accuracy 5 points above retraining's")
    assert of(-8.0, 0.0)[1] == "forget accuracy 8 points below retraining's"
    assert of(0.0, -3.1) == ("fails", "held-out accuracy 3 points below retraining's")
    assert of(0.0, 0.0, 1.0) == ("holds", "overdone in 3 of 3 runs")
    assert verdict([{"refused": "no"}]) == ("refuses", "no")


def test_the_section_shows_what_was_measured_and_names_the_cheapest(tmp_path: Path) -> None:
    assert section(tmp_path) == ""
    (tmp_path / "unlearn").mkdir()
    for name, gap in (("salun", 1.0), ("finetune", 90.0)):
        found = {"cases": [record(gap, -1.0, seed=s) for s in SEEDS]}
        (tmp_path / "unlearn" / f"{name}.json").write_text(json.dumps(found))
    text = section(tmp_path)
    assert "Cheapest that holds: `unlearn/salun`, 0.020 of retraining, at most a twentieth." in text
    assert "forget accuracy 90 points above retraining's" in text
    assert text.count("not measured") > 5


def test_everything_is_due_where_nothing_was_done(tmp_path: Path) -> None:
    lines = forecast_unlearn("unlearn/finetune", tmp_path)
    assert len(lines) == len(CASES) * len(SEEDS) + 1
