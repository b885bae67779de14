"""Repositories of the hub are fetched where that is asked for, never otherwise; no pickle, no code, nothing twice."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosts_fixtures import folder_of, host_of
from palimpsest.core.errors import Unsupported
from palimpsest.hosts import hub
from palimpsest.hosts.load import load

COMMIT = "0" * 40


class Hub:
    """A server on the loopback address that has one repository, `someone/tiny`; `asked` are the paths of requests."""

    def __init__(self, root: Path) -> None:
        self.asked: list[str] = []
        files = {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file()}
        tree = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in files.items()
        ]
        about = {"id": "someone/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files], "tags": []}
        asked = self.asked

        class Answer(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                path = self.path.partition("?")[0]
                asked.append(path)
                name = path.partition(f"/resolve/{COMMIT}/")[2] or path.partition("/resolve/main/")[2]
                content = files.get(name)
                if path.startswith("/api/models/someone/tiny"):
                    content = json.dumps(tree if "/tree/" in path else about).encode()
                if content is None:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound" if "someone/tiny" in path else "RepoNotFound")
                    self.end_headers()
                    return
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()
                if body:
                    self.wfile.write(content)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def files(self) -> set[str]:
        """The names of the files that were asked for."""
        return {path.partition(f"/resolve/{COMMIT}/")[2] for path in self.asked if "/resolve/" in path}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Hub]:
    root = Path(shutil.copytree(folder_of("sd"), tmp_path / "repository"))
    (root / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (root / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"the same again")
    (root / "whole-ema-only.safetensors").write_bytes(b"the same again")
    (root / "pipeline.py").write_text("raise SystemExit")
    (root / "safety_checker").mkdir()
    (root / "safety_checker" / "model.safetensors").write_bytes(b"nobody loads it")
    there = Hub(root)
    yield there
    there.server.shutdown()
    there.server.server_close()


CODE = """
from palimpsest.cli import main
from palimpsest.hosts.load import load
picture = ["sample", "a star", "--model", "someone/tiny", "--steps", "1", "--out"]
print("without", main([*picture, "a.png"]))
print("with", main([*picture, "b.png", "--download"]))
print("fingerprint", load("someone/tiny").fingerprint())
print("no such", main(["sample", "a star", "--model", "someone/nothing", "--download", "--out", "c.png"]))
"""


def test_a_repository_is_fetched_where_that_is_asked_for(served: Hub, tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{served.server.server_port}"
    env = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", CODE], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert "without 2" in done.stdout, done.stderr
    assert "with 0" in done.stdout, done.stderr
    assert f"fingerprint {host_of('sd').fingerprint()}" in done.stdout
    assert "no such 2" in done.stdout
    assert "Two ways to go on: --download, which fetches it now, or the folder of a copy" in done.stderr
    assert f"The repository someone/nothing cannot be fetched from {address}" in done.stderr
    assert not (tmp_path / "a.png").exists()
    assert (tmp_path / "b.png").exists()
    fetched = served.files()
    assert {"model_index.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"} <= fetched
    assert not [name for name in fetched if name.endswith((".bin", ".py")) or "fp16" in name or "safety" in name]
    assert "whole-ema-only.safetensors" not in fetched


def test_nothing_is_fetched_without_being_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("someone/tiny", "CompVis/stable-diffusion-v1-4"):
        with pytest.raises(Unsupported, match=r"never downloaded on their own\. Two ways to go on: --download"):
            load(name)
    with pytest.raises(Unsupported, match="neither a folder"):
        load("not a/name?")


def test_which_files_a_model_needs() -> None:
    pipeline = {
        "model_index.json",
        "world.json",
        "README.md",
        "v1-5-pruned.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "tokenizer_2/spiece.model",
        "tokenizer/merges.txt",
        "feature_extractor/preprocessor_config.json",
        "scheduler/deeper/x.json",
        "pipeline.py",
    }
    assert hub.wanted(pipeline) == {
        "model_index.json",
        "world.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "tokenizer_2/spiece.model",
        "tokenizer/merges.txt",
    }
    classifier = {"config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.safetensors", "tf_model.h5"}
    assert hub.wanted(classifier) == {"config.json", "model.safetensors"}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["config.json", "pytorch_model.bin"], r"no safetensors weights, only pickles such as pytorch_model\.bin"),
        (["config.json"], r"no safetensors weights\. Choose"),
        (["sd_xl_base.safetensors"], r"neither model_index\.json nor config\.json"),
    ],
)
def test_repositories_without_a_model_are_refused(
    files: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, name: files)
    with pytest.raises(Unsupported, match=words):
        load("someone/else", download=True)


def test_names_of_repositories() -> None:
    assert hub.is_name("owner/name")
    assert not any(map(hub.is_name, ("name", "./name", "a/b/c", "/a", "~/a", "folder/model.safetensors")))
