"""As a stranger would: files of every kind that are not what they should be. Words, exit code 2, nothing written."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hosts_fixtures import folder_of
from palimpsest.cli import main

DEEP = "[" * 50_000 + "]" * 50_000
TEXTS: dict[str, str | bytes] = {
    "empty": "",
    "cut": '{"a":',
    "list": "[]",
    "null": "null",
    "deep": DEEP,
    "nan": '{"a": NaN}',
    "1e400": '{"a": 1e400}',
    "twice": '{"a": 1, "a": 2}',
    "surrogate": '{"a": "\\ud800"}',
    "bytes": b"\xff\xfe\x00",
    "huge number": '{"a": 1' + "0" * 5000 + "}",
}


def refused(argv: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> str:
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert main(argv) == 2
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == kept, "something was written"
    words = capsys.readouterr().err
    assert "Traceback" not in words
    assert "\x1b" not in words
    return words


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def sampled(model: Path, **more: Path) -> list[str]:
    options = [word for k, v in {"out": model.parent / "o.png", **more}.items() for word in (f"--{k}", str(v))]
    return ["sample", "a star", "--model", str(model), "--steps", "1", *options]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(
    "file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "world.json"]
)
def test_models(file: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Path(shutil.copytree(folder_of("sd"), tmp_path / "m"))
    written(model / file, TEXTS[name])
    refused(sampled(model), capsys, tmp_path)


@pytest.mark.parametrize("size", [None, "x", [], True, 0, -8, 10**12])
def test_sizes(size: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Path(shutil.copytree(folder_of("sd"), tmp_path / "m"))
    config = json.loads((model / "unet/config.json").read_text()) | {"sample_size": size}
    written(model / "unet/config.json", json.dumps(config))
    assert "sample_size" in refused(sampled(model), capsys, tmp_path)


@pytest.mark.parametrize(
    "world",
    [{"world": "x"}, {"world": "glyphs"}, {"world": "glyphs", "steps": 10**12, "guidance": 1}, {"world": ["glyphs"]}],
)
def test_worlds(world: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Path(shutil.copytree(folder_of("sd"), tmp_path / "m"))
    written(model / "world.json", json.dumps(world))
    refused(sampled(model), capsys, tmp_path)


BOMB = (2**62).to_bytes(8, "little") + b"{}"


@pytest.mark.parametrize("content", [b"", b"x" * 20, BOMB, b"\x80\x04." * 9, b"PK\x03\x04" + b"\0" * 99], ids=ascii)
@pytest.mark.parametrize("where", ["weights", "patch", "export"])
def test_tensors(where: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if where == "weights":
        model = Path(shutil.copytree(folder_of("sd"), tmp_path / "m"))
        written(next((model / "unet").glob("*.safetensors")), content)
        refused(sampled(model), capsys, tmp_path)
        return
    patch = written(tmp_path / "p.safetensors", content)
    if where == "patch":
        argv = [*sampled(folder_of("sd"), patch=patch), "--out", str(tmp_path / "o.png")]
    else:
        argv = ["export", "--patch", str(patch), "--out", str(tmp_path / "lora")]
    refused(argv, capsys, tmp_path)


@pytest.mark.parametrize("name", [*TEXTS, "another"])
@pytest.mark.parametrize("command", ["verify", "compare"])
def test_receipts(command: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        text = '{"schema": "palimpsest/receipt/99"}' if name == "another" else TEXTS[name]
        written(tmp_path / folder / "receipt.json", text)
    what = ["verify", str(tmp_path / "a" / "receipt.json")]
    if command == "compare":
        what = ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c")]
    refused(what, capsys, tmp_path)


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy(shape: str, dtype: str = "'|u1'") -> bytes:
    """An npz whose header promises what is not there."""
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(
            "images.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + b"0" * 9
        )
    return buffer.getvalue()


IMAGES, LABELS = np.zeros((20, 16, 16, 3), np.uint8), np.arange(20) % 10
ARRAYS: dict[str, Callable[[], bytes]] = {
    "text": lambda: b"hello",
    "pickle": lambda: b"\x80\x04.",
    "objects": lambda: npz(images=IMAGES, labels=np.array([{"a": 1}] * 20, object)),
    "no number": lambda: npz(images=np.full(IMAGES.shape, np.nan), labels=LABELS),
    "labels": lambda: npz(images=IMAGES, labels=np.full(20, 2**62)),
    "few labels": lambda: npz(images=IMAGES, labels=np.arange(3)),
    "words": lambda: npz(images=np.array(["x"] * 20), labels=LABELS),
    "bomb": lambda: npy("(1000000000000,)"),
    "negative": lambda: npy("(-1,)"),
    "overflow": lambda: npy("(4294967296, 4294967296)"),
    "code": lambda: npy("(1,)", "__import__('os')"),
    "nested": lambda: npy("(1,)", "(" * 50 + ")" * 50),
}


def unlearnt(data: Path) -> list[str]:
    out = str(data.parent / "out")
    return ["unlearn", "--model", "tiny/digits", "--data", str(data), "--forget", "class:3", "--out", out, "--dry-run"]


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(unlearnt(written(tmp_path / "d.npz", ARRAYS[name]())), capsys, tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("3/0.png", b""),
        ("3/0.png", b"GIF89a" + b"\xff" * 50),
        ("3/0.png", b"II*\0" + b"\xff" * 50),
        ("metadata.jsonl", DEEP),
        ("metadata.jsonl", '{"file_name": "../../../etc/passwd", "label": "3"}'),
        ("metadata.jsonl", '{"file_name": "3/0\\u0000.png"}'),
        ("metadata.csv", b"\xff\xfe\x00"),
        ("metadata.csv", 'file_name,label\n"3/0.png,3\n'),
        ("d.parquet", b"PAR1" + b"\xff" * 50 + b"PAR1"),
    ],
)
def test_folders(file: str, content: str | bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    for label in range(10):
        (data / str(label)).mkdir(parents=True)
        Image.new("RGB", (16, 16), (label * 20, 0, 0)).save(data / str(label) / "0.png")
    written(data / file, content)
    refused(unlearnt(data), capsys, tmp_path)


LISTS = [b"\xff\xfe\x00", b'name,kind\n"star,object\n', b"", b"name\n\x1b[31m\n", b"a,b\n1,2\n"]


@pytest.mark.parametrize("content", LISTS, ids=ascii)
def test_lists(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "concepts.csv", content)
    refused(["erase", str(file), "--model", str(folder_of("sd")), "--out", str(tmp_path / "o")], capsys, tmp_path)
