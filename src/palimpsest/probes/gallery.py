"""What an audit has drawn so far, and what took long to read in it: kept, so that it goes on where it was stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import write_beside
from palimpsest.core.fingerprint import raw_bytes
from palimpsest.core.method import versions
from palimpsest.core.patch import Patch
from palimpsest.probes.groups import Shot
from palimpsest.probes.plan import Plan

FOLDER = ".pictures"  # beside the receipt, until it is written


class Gallery:
    """Drawn pictures by set, prompt, seed and guidance; in memory, and batch by batch in a folder where one is given.

    Args:
        folder: of the batches; None keeps them in memory only.
        key: what the pictures depend on. Batches of another key are another audit's and are removed.
        resume: take what is there; otherwise the folder starts empty.
    """

    def __init__(self, folder: Path | None = None, key: str = "", *, resume: bool = False) -> None:
        self.folder, self.key = folder, key
        self._held: dict[tuple[str, str, int, float | None], Tensor] = {}
        self._reads: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}  # (reader, picture's hash) -> what was read
        if folder is None or not folder.is_dir():
            return
        for file in sorted(folder.glob("*.safetensors")):
            if not (resume and self._read(file)):
                file.unlink()

    def missing(self, which: str, shots: Sequence[Shot]) -> list[Shot]:
        """Shots of a set that are not drawn yet."""
        return [s for s in shots if _of(which, s) not in self._held]

    def add(self, which: str, shots: Sequence[Shot], pictures: Tensor) -> None:
        """Keeps (n, 3, H, W) uint8 pictures of shots."""
        for shot, picture in zip(shots, pictures, strict=True):
            self._held[_of(which, shot)] = picture
        if shots:
            of = [which, [_of(which, s)[1:] for s in shots]]
            self._keep(f"{which}-{shots[0].seed}-{len(self)}", {"pictures": pictures}, of=of)

    def read(self, reader: str, picture: Tensor) -> tuple[Tensor, Tensor] | None:
        """What a reader said of a picture (3, H, W) uint8, (classes,) bool and its (d,) features; None: not yet."""
        return self._reads.get((reader, _hash(picture)))

    def heard(self, reader: str, pictures: Tensor, present: Tensor, features: Tensor) -> None:
        """Keeps what a reader said of (n, 3, H, W) uint8 pictures."""
        of = [_hash(p) for p in pictures]
        self._reads.update({(reader, p): (b, f) for p, b, f in zip(of, present, features, strict=True)})
        tensors = {"present": present.to(torch.uint8), "features": features}
        self._keep(f"read-{reader[:8]}-{of[0][:16]}", tensors, reader=reader, of=of)

    def _keep(self, name: str, tensors: dict[str, Tensor], *, of: list[Any], reader: str = "") -> None:
        if self.folder is None:
            return
        said = {"key": self.key, "reader": reader, "of": json.dumps(of)}
        held = {k: t.contiguous() for k, t in tensors.items()}
        try:
            write_beside(self.folder / f"{name}.safetensors", lambda tmp: save_file(held, tmp, said))
        except PalimpsestError:
            with contextlib.suppress(OSError):  # a full disk leaves no empty folder either
                self.folder.rmdir()
            raise

    def hang(self, which: str, shots: Sequence[Shot]) -> Tensor:
        """(n, 3, H, W) uint8 of shots that are all drawn."""
        pictures = torch.stack([self._held[_of(which, s)] for s in shots])
        # What hangs is what is held: no picture takes memory twice.
        self._held.update({_of(which, s): picture for s, picture in zip(shots, pictures, strict=True)})
        return pictures

    def clear(self) -> None:
        """Removes the folder: the audit is finished."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __len__(self) -> int:
        return len(self._held)

    def _read(self, file: Path) -> bool:
        """Takes a batch; false where it is another audit's or damaged."""
        try:
            with safe_open(str(file), framework="pt") as f:
                said = f.metadata() or {}
                if said.get("key") != self.key:
                    return False
                of, reader = json.loads(said["of"]), said.get("reader")
                if reader:
                    rows = zip(of, f.get_tensor("present").bool(), f.get_tensor("features"), strict=True)
                    self._reads.update({(reader, p): (present, features) for p, present, features in rows})
                    return True
                which, of = of
                pictures = f.get_tensor("pictures")
        except (SafetensorError, KeyError, ValueError, OSError):
            return False
        self._held.update({(which, p, s, g): x for (p, s, g), x in zip(of, pictures, strict=True)})
        return True


def _hash(picture: Tensor) -> str:
    return hashlib.sha256(str(tuple(picture.shape)).encode() + raw_bytes(picture)).hexdigest()


def _of(which: str, shot: Shot) -> tuple[str, str, int, float | None]:
    """What a picture is of."""
    return which, shot.prompt, shot.seed, shot.guidance


def key(host: Any, edited: Any, plan: Plan, oracle: Any = None) -> str:
    """sha256 of what an audit's pictures depend on besides prompt and seed: models, sampling, versions."""
    models = [
        m.sha256() if isinstance(m, Patch) else m.fingerprint() if hasattr(m, "fingerprint") else ""
        for m in (host, edited, oracle)
    ]
    how = [plan.steps, plan.guidance, plan.size, plan.negative]
    return hashlib.sha256(json.dumps([models, how, versions()], sort_keys=True).encode()).hexdigest()
