"""The command line on a bad day: results that are there already, odd terminals, no home, told to end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hosts_fixtures import folder_of
from palimpsest import machine
from palimpsest.cli import commands, main
from palimpsest.core.errors import PalimpsestError

SMALL = ["--prompts", "1", "--seeds", "1", "--sample-steps", "1", "--keep", "moon"]


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "palimpsest.cli", *args]


def ended(*args: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(*args), capture_output=True, env={**os.environ, **env})


@pytest.fixture
def erased(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    assert main(["erase", "star", "--model", str(folder_of("sd")), "--out", str(out), "--method", "uce", *SMALL]) == 0
    return out


def test_nothing_is_overwritten_unless_said(erased: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, patch, keys = str(folder_of("sd")), str(erased / "patch.safetensors"), str(tmp_path / "keys")
    about = ["--before", model, "--after", patch, "--concept", "star", *SMALL]
    again = {
        erased: ["erase", "star", "--model", model, "--method", "uce", *SMALL],
        tmp_path / "audit": ["audit", *about],
        tmp_path / "x.png": ["sample", "a star", "--model", model, "--steps", "1"],
        tmp_path / "lora": ["export", "--patch", patch, "--model", model],
        tmp_path / "both": ["compare", str(erased), str(tmp_path / "audit")],
    }
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "compare.html").write_text("a comparison")
    for out, args in again.items():
        assert out.name in ("out", "both") or main([*args, "--out", str(out)]) == 0
        held = {f: f.read_bytes() for f in ([out] if out.is_file() else out.iterdir()) if f.is_file()}
        capsys.readouterr()
        assert main([*args, "--out", str(out)]) == 2, args
        said = capsys.readouterr().err
        assert "--overwrite" in said, said
        assert "another --out" in said
        assert any(f.name in said for f in held)
        assert {f: f.read_bytes() for f in held} == held
    assert main([*again[erased], "--out", str(erased), "--overwrite"]) == 0
    assert main(["keygen", keys]) == 0
    secret = (tmp_path / "keys" / "key.pem").read_bytes()
    assert main(["keygen", keys]) == 2
    assert (tmp_path / "keys" / "key.pem").read_bytes() == secret


@pytest.mark.parametrize("encoding", ["ascii", "cp437"])
def test_what_a_terminal_cannot_encode_is_replaced(encoding: str) -> None:
    for args in (["show", "erase/realera"], ["erase", "--help"], ["sample", "--help"]):
        done = ended(*args, PYTHONIOENCODING=encoding)
        assert done.returncode == 0, done.stderr


def test_names_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "erase/\x1b[2J\x9b8m\u202e"]) == 2
    said = capsys.readouterr().err
    assert "\\x1b[2J\\x9b8m\\u202e" in said
    assert not {"\x1b", "\x9b", "\u202e"} & set(said)


def test_a_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.delenv(machine.CACHE, raising=False)
    machine._passing.cache_clear()
    with pytest.warns(UserWarning, match=machine.CACHE):
        folder = machine.cache_folder()
    assert os.access(folder, os.W_OK)
    monkeypatch.setenv(machine.CACHE, "/dev/null/cache")
    with pytest.raises(PalimpsestError, match=machine.CACHE):
        machine.cache_folder()


@pytest.mark.parametrize("name", commands())
def test_help_names_what_stands_where_and_gives_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert f"palimpsest {name} " in shown.split("Examples:")[-1]
    assert not {"STR", "PATH", "INT|", "FLOAT|"} & set(shown.replace("|", "| ").split()), shown


def test_help_on_a_system_shows_its_options_and_their_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["erase", "--method", "esd", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Options of ESD (erase/esd):" in shown
    assert "--walk-steps int at least 1 default 50" in shown
    assert "--train xattn, noxattn, selfattn, full default 'xattn'" in shown
    assert main(["show", "unlearn/prune_first"]) == 0
    assert "float at least 0 and at most 0.99" in capsys.readouterr().out


def test_models_prompts_and_patches_are_said_alike() -> None:
    def options(name: str) -> dict[str, Any]:
        return {f: str(field.type) for f, field in commands()[name].__dataclass_fields__.items()}

    for name in commands():
        for field, type_ in options(name).items():
            assert field != "model" or "Positional" not in type_, name
            assert field != "patch" or "Positional" not in type_, name
