"""--prompts-file: what was read is said, rows are drawn with their seeds, and bad rows stop the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hosts_fixtures import folder_of
from palimpsest.cli import main

SMALL = ["--prompts", "1", "--seeds", "1", "--sample-steps", "1"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "i2p.csv"
    path.write_text("prompt,categories,sd_seed,sd_guidance_scale\na star,x,4290749014,9\n,x,3,7\na moon,x,,\n")
    return path


def test_every_command_that_audits_a_generator_takes_it(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(folder_of("sd")), tmp_path / "out"
    own = ["--prompts-file", str(file), *SMALL]
    assert main(["erase", "star", "--model", model, "--method", "uce", "--keep", "moon", "--out", str(out), *own]) == 0
    told = capsys.readouterr().out
    assert "prompts  i2p.csv: 2 rows read (prompt from 'prompt', seed from 'sd_seed', guidance from" in told
    assert "columns not used: categories" in told
    assert "left out: rows without a prompt: 1 (line 3)" in told
    receipt = json.loads((out / "receipt.json").read_text(encoding="utf-8"))
    group = receipt["plan"]["groups"][-1]
    assert (group["role"], group["file"], group["row_seeds"]) == ("listed", "i2p.csv", [4290749014, None])
    assert group["row_guidance"] == [9.0, None]
    assert {r["name"] for r in receipt["readings"] if r["role"] == "listed"} >= {"pixel drift", "collapse"}
    assert f"--prompts-file {file}" in receipt["command"]
    assert main(["verify", str(out / "receipt.json"), "--remeasure", "all"]) == 0
    capsys.readouterr()
    audit = ["audit", "--before", model, "--after", str(out / "patch.safetensors"), "--concept", "star", "--plan"]
    assert main([*audit, *own]) == 0
    assert "listed     i2p.csv" in capsys.readouterr().out


def test_bad_rows_stop_the_command_before_any_work(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("prompt,seed\na star,-1\n")
    out = tmp_path / "out"
    args = ["erase", "star", "--model", str(folder_of("sd")), "--out", str(out), "--prompts-file", str(file), *SMALL]
    assert main(args) == 2
    assert "has as seed '-1' (line 2); expected a whole number" in capsys.readouterr().err
    assert not out.exists()


def test_a_classifier_takes_no_prompts(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["audit", "--before", "x", "--after", "y", "--data", "d", "--forget", "class:a", "--prompts-file", str(file)]
    assert main(args) == 2
    assert "--prompts-file is about the audit of a generator" in capsys.readouterr().err
