"""Files are whole or not there, what killed writers left goes, and living writers are left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from palimpsest.core import files
from palimpsest.core.errors import Damaged, PalimpsestError
from palimpsest.core.files import build_beside, read_tensors, write_beside, write_text

SLOW = """
import sys, time
from pathlib import Path
from palimpsest.core.files import {how}

def slowly(path):
    if "{how}" == "write_beside":
        path.write_text("half")
    print("writing", flush=True)
    time.sleep(60)

{how}(Path(sys.argv[1]), slowly)
"""


@pytest.fixture(autouse=True)
def _forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_swept", set())


@pytest.mark.skipif(os.name != "posix", reason="locks of folders")
@pytest.mark.parametrize("how", ["write_beside", "build_beside"])
def test_a_killed_writers_leftovers_go_and_a_living_ones_stay(tmp_path: Path, how: str) -> None:
    command = [sys.executable, "-c", SLOW.format(how=how), str(tmp_path / "a")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        left = list(tmp_path.iterdir())
        assert len(left) == 1
        write_text(tmp_path / "b", "whole")
        assert sorted(tmp_path.iterdir()) == sorted([*left, tmp_path / "b"]), "a living writer's file was taken"
        process.send_signal(signal.SIGKILL)
    files._swept.clear()
    write_text(tmp_path / "b", "again")
    assert list(tmp_path.iterdir()) == [tmp_path / "b"]


def test_what_only_looks_alike_is_left_alone(tmp_path: Path) -> None:
    others = [".film.part", ".a.palimpsest-0123.part", "a.palimpsest-01234567.part", ".a.palimpsest-01234567.part.txt"]
    for name in others:
        (tmp_path / name).write_text("mine")
    os.symlink(tmp_path, tmp_path / ".link.palimpsest-01234567.part")
    write_text(tmp_path / "b", "whole")
    assert {p.name for p in tmp_path.iterdir()} == {*others, ".link.palimpsest-01234567.part", "b"}


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half") if not path.is_dir() else (path / "half").write_text("half")
        raise OSError(28, "No space left on device")

    for how in (write_beside, build_beside):
        with pytest.raises(PalimpsestError, match="Free some space"):
            how(tmp_path / "a", fail)
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(PalimpsestError, match="another folder"):
        write_text(tmp_path / "file" / "a", "x")


def test_of_two_builders_one_wins(tmp_path: Path) -> None:
    def build(path: Path) -> None:
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / "first").touch()
        (path / "second").touch()

    assert [p.name for p in build_beside(tmp_path / "a", build).iterdir()] == ["first"]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def header_of(text: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        header_of(b"{}", length=2**63),
        header_of(b"{}", length=2**40),
        header_of(b"{" + b" " * 100),
        header_of(b"[" * 50_000 + b"]" * 50_000),
        header_of(b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}', b"0000"),
        header_of(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}'),
        header_of(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"0000"),
        header_of(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"00"),
        header_of(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', b"00000000"),
        header_of(b'{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}', b"0000"),
        header_of(b'{"a":{"dtype":"F32","shape":"x","data_offsets":[0,4]}}', b"0000"),
        header_of(b'{"a":1}'),
        header_of(b'{"__metadata__":[1]}'),
        header_of(b'{"__metadata__":{"palimpsest":1}}'),
        header_of(b'{"\xff":1}'),
    ],
)
def test_header_bombs_and_other_kinds_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(Damaged, match="cannot be read as a patch"):
        read_tensors(tmp_path / "x.safetensors", "a patch")


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E8M0", "F8_E4M3", "C64", "U64", "BOOL"])
def test_types_that_torch_lacks_are_refused_or_read(tmp_path: Path, dtype: str) -> None:
    size = 8 if dtype in ("C64", "U64") else 1
    text = f'{{"a":{{"dtype":"{dtype}","shape":[{2 if dtype == "F4" else 1}],"data_offsets":[0,{size}]}}}}'.encode()
    (tmp_path / "x.safetensors").write_bytes(header_of(text, b"\1" * size))
    try:
        _, tensors = read_tensors(tmp_path / "x.safetensors", "a patch")
    except Damaged:
        return
    assert set(tensors) == {"a"}
