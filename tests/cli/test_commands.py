"""The command line as users meet it: commands, options, errors, exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hosts_fixtures import folder_of
from palimpsest.cli import commands, main
from palimpsest.core.patch import Patch

SMALL = ["--prompts", "2", "--seeds", "1", "--sample-steps", "2"]


@pytest.fixture
def model() -> str:
    return str(folder_of("sd"))


def test_overview_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in commands())
    assert main(["--version"]) == 0


def test_ls_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "erase"]) == 0
    assert "erase/uce" in capsys.readouterr().out
    assert main(["ls", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"erase/uce", "erase/rece", "erase/esd", "erase/sld"} <= {e["id"] for e in listed}
    assert main(["show", "erase/esd"]) == 0
    shown = capsys.readouterr().out
    assert "--steps" in shown
    assert "Differs from the paper" in shown
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["torch"]


def test_ls_and_show_import_no_torch() -> None:
    code = (
        "import sys; from palimpsest.cli import main; main(['ls']); main(['show', 'erase/uce']);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_erase_then_audit_sample_and_verify(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "no star"
    args = ["erase", "star", "--model", model, "--method", "uce", "--keep", "moon,ring", "--out", str(out), *SMALL]
    assert main([*args, "--ridge", "0.2"]) == 0
    assert {p.name for p in out.iterdir()} >= {"patch.safetensors", "receipt.json", "receipt.html"}
    patch = Patch.load(out / "patch.safetensors")
    assert patch.provenance["parameters"]["ridge"] == 0.2
    assert [c["name"] for c in patch.provenance["request"]["keep"]] == ["moon", "ring"]
    receipt = json.loads((out / "receipt.json").read_text())
    assert "--ridge 0.2" in receipt["command"]
    assert main(["verify", str(out / "receipt.json")]) == 0
    assert main(["verify", str(out / "receipt.json"), "--remeasure", "all"]) == 0

    again = ["audit", "--before", model, "--after", str(out / "patch.safetensors"), "--concept", "star"]
    assert main([*again, "--keep", "moon", "--out", str(tmp_path / "audit"), *SMALL]) == 0
    assert (tmp_path / "audit" / "receipt.html").is_file()

    picture = tmp_path / "x.png"
    plain = ["sample", "a star", "--model", model, "--steps", "2", "--n", "2", "--out", str(picture), "--overwrite"]
    assert main([*plain, "--patch", str(out / "patch.safetensors")]) == 0
    with_patch = picture.read_bytes()
    assert main(plain) == 0
    assert picture.read_bytes() != with_patch
    assert main([*plain, "--patch", str(out / "patch.safetensors"), "--scale", "0"]) == 0


def test_audit_of_two_models(model: str, tmp_path: Path) -> None:
    args = ["audit", "--before", model, "--after", model, "--concept", "star", "--out", str(tmp_path / "a"), *SMALL]
    assert main(args) == 0
    weights = [
        r for r in json.loads((tmp_path / "a" / "receipt.json").read_text())["readings"] if "tensors" in r["name"]
    ]
    assert all(r["value"] == 0 for r in weights)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["paint"], "no command"),
        (["show", "erase/esdd"], "Did you mean"),
        (["ls", "rub-out"], "no verb"),
        (["ls", "--colour", "red"], "no option"),
        (["erase", "star", "--model", "nowhere"], "nowhere"),
        (["erase", "", "--model", "{model}", "--keep", "moon"], "no target"),
        (["erase", "star", "--model", "{model}", "--keep", "star"], "both a target and kept"),
        (["erase", "star", "--model", "{model}", "--toward", "star"], "by itself"),
        (["erase", "star", "--model", "{model}", "--method", "esd", "--steps", "0"], "at least 1"),
        (["erase", "star", "--model", "{model}", "--method", "nothing"], "no system"),
        (["erase", "star", "--model", "{model}", "--prompts", "0"], "at least 1"),
        (["sample", "a star", "--model", "{model}", "--patch", "nowhere.safetensors"], "no patch"),
        (["sample", "a star", "--model", "{model}", "--n", "0"], "at least 1"),
        (["verify", "nowhere.json"], "nowhere.json"),
        (["audit", "--before", "{model}", "--after", "nowhere", "--concept", "star"], "nowhere"),
        (["exam", "protect"], "no "),
    ],
)
def test_errors_say_what_to_do(
    args: list[str],
    words: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main([a.replace("{model}", model) for a in args])
    assert code == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [], "a refused command writes nothing"


def test_a_wrong_patch_is_refused(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from palimpsest.core.delta import Dense

    path = Patch(base="0" * 64, deltas={"unet.conv_in.bias": Dense(value=torch.ones(8))}).save(
        tmp_path / "p.safetensors"
    )
    assert main(["sample", "a star", "--model", model, "--patch", str(path), "--out", str(tmp_path / "x.png")]) == 2
    assert "made for the model" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_an_interrupted_command_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("palimpsest.core.catalog.entries", interrupted)
    assert main(["ls"]) == 130
    assert "same command again" in capsys.readouterr().err
    assert main(["erase", "star"]) == 130
    assert "--resume" in capsys.readouterr().err


def test_plans_are_printed_and_nothing_is_written(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out"), "--keep", "moon,ring", *SMALL]
    audit = ["audit", "--before", model, "--after", model, "--concept", "star", *out]
    for command in ([*audit, "--plan"], [*audit, "--dry-run"], ["erase", "star", "--model", model, *out, "--dry-run"]):
        assert main(command) == 0
        said = capsys.readouterr().out
        assert "pictures" in said
        assert "To see a change of 2 points" in said
        assert "ms a picture" in said
    assert main([*audit, "--plan", "--resurfacing"]) == 0
    assert "Resurfacing: 2 fine-tunings of 80 steps x 4 on 16 pictures" in (said := capsys.readouterr().out)
    assert "Expected besides: " in said
    assert main(["exam", "erase/uce", "--dry-run", "--results", str(tmp_path), "--again"]) == 0
    assert "runs are due" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_audit_goes_on(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from palimpsest.probes.gallery import Gallery

    add, added = Gallery.add, []

    def once(self: Gallery, *args: object) -> None:
        add(self, *args)  # type: ignore[arg-type]
        added.append(args[0])
        if len(added) == 1:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Gallery, "add", once)
    out = tmp_path / "out"
    args = [
        "audit",
        "--before",
        model,
        "--after",
        model,
        "--concept",
        "star",
        "--keep",
        "moon",
        "--out",
        str(out),
        *SMALL,
    ]
    assert main(args) == 143
    assert "--resume" in capsys.readouterr().err
    kept = list((out / ".pictures").iterdir())
    assert len(kept) == 1
    assert main([*args, "--resume"]) == 0
    assert not (out / ".pictures").exists()
    assert (out / "receipt.html").is_file()


def test_sees_raises_the_seeds_to_what_a_change_needs(model: str) -> None:
    from palimpsest.probes.forecast import needed
    from palimpsest.run import Look, load, plan, request

    host = load(model)
    asked = request(host, "star", keep="moon,ring,heart")
    drawn = plan(host, asked, Look(prompts=10, seeds=1, sees=20.0))
    others = [g for g in drawn.groups if g.role in ("neighbour", "unrelated")]
    tests = max(sum(g.role == o.role for g in others) for o in others)
    assert all(len(g.prompts) * g.seeds >= needed(0.2, tests) for g in others)


def test_checkpointing_without_training_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    uce = ["erase", "star", "--model", "tiny/sd", "--method", "uce", "--checkpointing", "--out", str(tmp_path / "out")]
    assert main(uce) == 2
    assert "UCE takes no steps of training; leave out --checkpointing" in capsys.readouterr().err
    audit = ["audit", "--before", "tiny/sd", "--after", "x.safetensors", "--concept", "star", "--checkpointing"]
    assert main([*audit, "--out", str(tmp_path / "out")]) == 2
    assert "An audit trains nothing without --resurfacing" in capsys.readouterr().err
    assert main(["sample", "a star", "--offload", "--out", str(tmp_path / "x.png")]) == 2
    assert "on the CPU that is where they lie" in capsys.readouterr().err
