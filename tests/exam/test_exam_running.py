"""What runs again, where, and what a killed process costs."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exam_fixtures import dies, examine, script, small, threads

from palimpsest import cli
from palimpsest.core.errors import BadRequest, PalimpsestError, Unsupported
from palimpsest.exam import budgets, case, digest, record, running
from palimpsest.exam.case import Exam, asked
from palimpsest.processes import ATTEMPTS, over_ray, spread


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, Exam]:
    """The exams, which a test may add to."""
    every = dict(case.exams())
    for module in (case, running):
        monkeypatch.setattr(module, "exams", lambda: every)
    return every


def test_only_what_is_missing_runs(tmp_path: Path, known: dict[str, Exam]) -> None:
    ran: list[Any] = []

    def noted(system: str, case: Any, seed: int) -> dict[str, Any]:
        ran.append((system, case["n"], seed))
        if system == "other":
            raise Unsupported("not this one")
        return examine(system, case, seed)

    known["small"] = small(examine=noted)
    told: list[tuple[int, int]] = []
    listed = running.forecast("studies/small", tmp_path, workers=1)
    assert not ran
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"
    assert listed[0] == "small: one, case 1, seed 0"
    assert listed[8] == "8 of 8 runs are due, 0 are kept; 1 at once."
    assert "bfloat16" in listed[-1]
    (path,) = running.run("studies/small", tmp_path, workers=1, progress=lambda what, done, of: told.append((done, of)))
    assert len(ran) == 8
    assert told[-1] == (8, 8)
    records = json.loads(path.read_text())["records"]
    order = [(r["case"]["n"], r["seed"], r["system"]) for r in records]
    assert order == [(n, seed, s) for n in (1, 2) for seed in (0, 1) for s in ("one", "other")], "in the order of work"
    assert {r.get("refused") for r in records if r["system"] == "other"} == {"not this one"}
    assert running.run("studies/small", tmp_path, workers=1) == []
    assert running.forecast("studies/small", tmp_path) == ["0 of 8 runs are due, 8 are kept; 1 at once."]
    running.run("studies/small", tmp_path, workers=1, again=True)
    assert len(ran) == 16
    known["small"] = small(examine=noted, version=2)
    running.run("studies/small", tmp_path, workers=1)
    assert len(ran) == 24, "another work is another exam"
    assert len(json.loads(path.read_text())["records"]) == 8, "records of the old work are gone"


def test_what_another_process_wrote_meanwhile_stays(tmp_path: Path, known: dict[str, Exam]) -> None:
    exam = known["small"] = small()
    record.put(tmp_path, exam, "one", exam.cases[1], 1, {"by": "the other process"})
    record.put(tmp_path, exam, "one", exam.cases[0], 0, {"by": "this process"})
    assert [r["by"] for r in record.read(tmp_path, exam)["one"]] == ["this process", "the other process"]


def test_what_cannot_be_done_here_is_left_out_and_said(tmp_path: Path, known: dict[str, Exam]) -> None:
    known["small"] = small(missing=lambda case: "no oracle" if case["n"] == 2 else "")
    lines = running.forecast("studies/small", tmp_path)
    assert sum("case 2" in line for line in lines) == 0
    assert "left out: no oracle" in lines
    assert "4 of 4 runs are due, 0 are kept; " in lines[-2]


def test_words_of_the_command_mean_exams() -> None:
    assert [e.name for e, _ in asked("erase")] == ["erase", "together"]
    assert [e.name for e, _ in asked("unlearn")] == ["unlearn", "poison", "values"]
    assert {e.name for e, _ in asked("studies")} >= {"attack", "many", "letters"}
    assert [(e.name, only) for e, only in asked("erase/uce")] == [
        ("erase", ("erase/uce",)),
        ("together", ("erase/uce",)),
    ]
    (main, _), (poison, only) = asked("unlearn/ssd")
    assert (main.name, poison.name) == ("unlearn", "poison")
    assert "untouched" in only
    assert "unlearn/salun" not in only
    for what, why in (("studies/none", "attack"), ("protect", "no system"), ("unlearn/retrain", "the oracles are its")):
        with pytest.raises(BadRequest, match=why):
            asked(what)


def test_the_command_prints_what_is_due(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["exam", "studies/attack", "--results", str(tmp_path), "--docs", "None", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "attack: erase/uce, seed 0"
    assert lines[-2].startswith("15 of 15 runs are due, 0 are kept;")
    assert not list(tmp_path.iterdir())


def test_a_killed_process_is_tried_again(tmp_path: Path) -> None:
    items = [(str(tmp_path), name, times) for name, times in (("whole", 0), ("killed", 1), ("last", 0))]
    done = dict(spread(dies, items, workers=2))
    assert list(done.values()) == [name for _, name, _ in done]
    assert set(done) == set(items)
    assert (tmp_path / "killed.0").exists(), "it was killed"


def test_a_process_that_always_dies_is_given_up(tmp_path: Path) -> None:
    items = [(str(tmp_path), "killed", ATTEMPTS), (str(tmp_path), "whole", 0)]
    with pytest.raises(PalimpsestError, match=f"died {ATTEMPTS} times"):
        list(spread(dies, items, workers=2))
    assert len(list(tmp_path.glob("killed.*"))) == ATTEMPTS


def test_each_process_computes_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = [result for _, result in spread(threads, [0, 1], workers=2)]
    assert [n for _, n in found] == ["1", "1"]
    assert os.getpid() not in {pid for pid, _ in found}
    before = torch.get_num_threads()
    here = list(spread(lambda item: (os.getpid(), torch.get_num_threads()), [0], workers=2))
    assert here == [(0, (os.getpid(), 1))], "a single piece of work needs no other process"
    assert torch.get_num_threads() == before


def test_a_run_over_ray_survives_a_killed_worker(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    items = [(str(tmp_path), name, times) for name, times in (("whole", 0), ("killed", 1))]
    assert set(spread(dies, items, workers=2, ray="local")) == {(item, item[1]) for item in items}
    assert (tmp_path / "killed.0").exists()


def test_without_ray_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(over_ray, "import_module", missing)
    with pytest.raises(BadRequest, match=r"extra \[cluster\]"):
        list(spread(threads, [0], ray="local"))


def test_a_key_reaches_all_that_a_result_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defect: a fix in core, hosts or probes left the records of the old code in force."""
    from palimpsest.core import catalog

    files = {
        "erase/a.py": "from palimpsest.ops.b import c\nfrom palimpsest.core import d\nfrom palimpsest.cli import f",
        "ops/b.py": "from palimpsest.ops import e",
        "ops/e.py": "x = 1",
        "core/d.py": "def y():\n    return 1",
        "cli/f.py": "x = 1",
        "exam/work.py": "from palimpsest.hosts.g import h\nfrom palimpsest.probes import k",
        "hosts/g.py": "x = 1",
        "hosts/other.py": "from palimpsest.worlds import w",
        "worlds/w.py": "x = 1",
        "probes/k.py": "x = 1",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(catalog, "ROOT", tmp_path)

    def both() -> tuple[str, str]:
        for cached in (digest.source, digest._imports, digest._code):
            cached.cache_clear()
        return digest.source("palimpsest.erase.a"), digest.source("palimpsest.exam.work")

    def changed(name: str, text: str) -> list[bool]:
        before = both()
        (tmp_path / name).write_text(text)
        return [a != b for a, b in zip(before, both(), strict=True)]

    assert changed("core/d.py", '"""Words."""\n\n\ndef y():\n    """More."""\n    return 1  # why\n') == [False, False]
    assert changed("core/d.py", "def y():\n    return 2") == [True, False]
    assert changed("ops/e.py", "x = 2") == [True, False]
    assert changed("ops/e.json", "[1]") == [True, False], "data that a module brings"
    assert changed("cli/f.py", "x = 2") == [False, False]
    assert changed("hosts/g.py", "x = 2") == [False, True]
    assert changed("probes/k.py", "x = 2") == [False, True]
    assert changed("worlds/w.py", "x = 2") == [False, True], "by way of a host that is found by its folder"
    assert changed("exam/work.py", files["exam/work.py"] + "\nTEXT = 1") == [False, False]
    both()


def test_the_real_keys_reach_the_rooms_below(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    code = digest._code.__wrapped__
    monkeypatch.setattr(digest, "_code", lambda path: read.append(path.parent.name) or code(path))
    digest.source.__wrapped__("palimpsest.exam.verbs.erase")
    digest.source.__wrapped__("palimpsest.erase.uce")
    assert {"core", "hosts", "probes", "ops", "worlds", "erase"} <= set(read)
    assert not {"cli", "exam", "receipt"} & set(read)


def test_budget_and_model_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    exam = case.exams()["erase"]

    def key() -> str:
        return digest.key(exam, "erase/uce", exam.cases[0], 0)

    first = key()
    assert key() == first
    assert first != digest.key(exam, "erase/uce", exam.cases[0], 1)
    assert first != digest.key(exam, "erase/uce", exam.cases[1], 0)
    with monkeypatch.context() as patched:
        patched.setattr(budgets, "parameters", lambda system, case: {"ridge": 0.1})
        assert key() != first
    monkeypatch.setattr(digest, "model_digest", lambda name: "another model")
    assert key() != first


def test_records_of_code_that_changed_no_bit_get_its_keys(tmp_path: Path, known: dict[str, Exam]) -> None:
    exam = known["small"] = small()
    for system, case_, seed in exam.work():
        record.put(tmp_path, exam, system, case_, seed, {"value": 1})
    known["small"] = newer = replace(exam, version=2)
    assert len(running.due([(newer, ())], tmp_path)) == 8
    assert script("rekey_exam").rekey(tmp_path, newer) == 8
    assert running.due([(newer, ())], tmp_path) == []
    assert {r["value"] for r in record.read(tmp_path, newer)["one"]} == {1}
