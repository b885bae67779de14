"""A model's tensors: their fingerprint, and that files hold every one of them under the model's own names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from palimpsest import machine
from palimpsest.core.errors import Damaged, PalimpsestError, Unsupported
from palimpsest.core.files import write_text
from palimpsest.core.fingerprint import State, fingerprint, quick_state, tensors_of
from palimpsest.hosts.components import refuse_unfit
from palimpsest.hosts.headers import Header
from palimpsest.hosts.source import first_line, quiet, weights_in

T = TypeVar("T")

LARGE = 2**26  # bytes of a model whose fingerprint is worth keeping
PREFIXES = ("module.", "model.", "_orig_mod.")  # of DataParallel, of training frameworks, of torch.compile
BASE = ".base_layer."  # where peft puts a layer while an adapter is loaded
COUNTER = "num_batches_tracked"  # only counts training steps, and old files lack it


class Weights:
    """Remembers the last fingerprint of `root` together with the quick state that it belongs to.

    A large model's fingerprint is also kept on disk, by the path, size and time of the files that it was loaded from
    and by the sums of its tensors: who loads it again does not hash gigabytes again, and whoever changed it does.
    """

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._files: list[tuple[str, int, int]] = []
        self._seen: State | None = None
        self._fingerprint = ""

    def come_from(self, files: Iterable[Path]) -> None:
        """Tells which files the tensors were just read from."""
        stats = [(str(f.resolve()), f.stat()) for f in sorted(files)]
        self._files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]

    def fingerprint(self) -> str:
        """sha256 of all tensors. Cost: one fast pass; a hash of all bytes where anything changed."""
        state = quick_state(self._root)
        if state != self._seen:
            kept = self._kept(state) if self._seen is None and self._files else None
            self._fingerprint, self._seen = self._found(kept), state
        return self._fingerprint

    def _kept(self, state: State) -> Path | None:
        """Where this model's fingerprint is kept; None for models that are hashed in no time."""
        tensors = tensors_of(self._root)
        if sum(t.numel() * t.element_size() for t in tensors.values()) < LARGE:
            return None
        sums = [(name, str(t.dtype), tuple(t.shape), state[name][2]) for name, t in tensors.items()]
        key = hashlib.sha256(repr((self._files, sums)).encode()).hexdigest()
        return machine.cache_folder() / "fingerprints" / key

    def _found(self, kept: Path | None) -> str:
        if kept is not None and kept.is_file():
            content = kept.read_text(encoding="ascii", errors="replace")
            if re.fullmatch("[0-9a-f]{64}", content):
                return content
        value = fingerprint(self._root)
        if kept is not None:
            with suppress(PalimpsestError):  # a full disk costs the next one time, nothing else
                write_text(kept, value)
        return value


def loaded(cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A component of diffusers or transformers, whose every tensor comes from its files: the plain ones if there.

    Args:
        cls: its class, chosen from a closed list; the folder chooses nothing.

    Raises:
        Damaged: files are broken or lack tensors, which the libraries would fill at random without a word.
    """
    stem = _stem(cls)
    variant, files = min(weights_in(folder, stem).items())  # the plain one, "", comes before every other
    refuse_unfit(cls, folder, files)
    how: dict[str, Any] = {"torch_dtype": dtype, "output_loading_info": True}
    try:
        with quiet():
            model, info = cls.from_pretrained(
                folder, variant=variant or None, use_safetensors=True, local_files_only=True, **how
            )
            names = unprefixed([key for file in files for key in Header.of(file).shapes])
            if absent(info) and any(old != new for old, new in names.items()):
                state = {names[k]: t.to(dtype) if t.is_floating_point() else t for k, t in _read(files).items()}
                if stem == "model":
                    model, info = cls.from_pretrained(None, config=model.config, state_dict=state, **how)
                else:
                    result = model.load_state_dict(state, strict=False, assign=True)
                    info = {"missing_keys": result.missing_keys}
    except Damaged:
        raise
    except Exception as e:  # whatever diffusers, transformers or safetensors meet in a broken file
        raise Damaged(
            f"{folder} cannot be loaded as a {cls.__name__}: {first_line(e)}. It is damaged (fetch it again), or "
            "was saved by newer versions of diffusers or transformers than those installed here (upgrade them)."
        ) from e
    refuse_absent(absent(info), names, folder)
    return model.eval()


def weights_of(cls: Any, folder: Path) -> list[Path]:
    """The files that a component's tensors come from: the plain ones if there.

    Raises:
        Damaged: there are none, or only pickles.
    """
    return min(weights_in(folder, _stem(cls)).items())[1]


def _stem(cls: Any) -> str:
    return "diffusion_pytorch_model" if cls.__module__.startswith("diffusers.") else "model"


def filled(model: nn.Module, path: Path) -> nn.Module:
    """A module with the tensors of a safetensors file or of a folder's, which must be exactly its own, prefixes apart.

    Raises:
        Damaged: there are none, or they have other names or shapes.
    """
    files = [path] if path.is_file() else min(weights_in(path).items())[1]
    wanted = model.state_dict()
    names: Mapping[str, str] = {key: key for file in files for key in Header.of(file).shapes}
    if not set(wanted) <= set(names):
        names = unprefixed(names)
    state = {names[key]: value for key, value in _read(files).items()}
    lost = [name for name in wanted if name not in state and not name.endswith(COUNTER)]
    more = sorted(set(state) - set(wanted))
    if not more or any(BASE in key for key in more):
        refuse_absent(lost, names, path)
    odd = lost + more + [name for name in wanted if name in state and wanted[name].shape != state[name].shape]
    if odd:
        raise Damaged(f"{path} does not fit its model: {len(odd)} tensors differ, first {odd[0]!r}.")
    model.load_state_dict({**wanted, **{key: value.to(wanted[key].dtype) for key, value in state.items()}})
    return model


def unprefixed(keys: Collection[str]) -> Mapping[str, str]:
    """Each name as it stands in a file -> without what wrappers of the whole model put before every name."""
    names = {key: key.replace("_orig_mod.", "") for key in keys}
    while prefix := next((p for p in PREFIXES if names and all(n.startswith(p) for n in names.values())), ""):
        names = {key: name.removeprefix(prefix) for key, name in names.items()}
    return names


def absent(info: Mapping[str, Iterable[str]]) -> list[str]:
    """The tensors that a library says it did not find."""
    return sorted(name for name in info["missing_keys"] if not name.endswith(COUNTER))


def refuse_absent(lost: Sequence[str], held: Collection[str], where: Path) -> None:
    """Raises Damaged where tensors are lost; `held` are the names that the files have."""
    if not lost:
        return
    if any(BASE in key for key in held):
        raise Damaged(
            f"{where} was saved with an adapter (LoRA) still loaded: its layers are called {lost[0]!r} and the like "
            "only without it. Fuse or unload the adapter (pipeline.fuse_lora(), pipeline.unload_lora_weights()) and "
            "save the model again."
        )
    raise Damaged(
        f"{len(lost)} tensors of {where} are not in its files, first {lost[0]!r}; they would be random. The "
        "download is incomplete (fetch the model again), or the names are those of another architecture or version."
    )


def refuse_adapters(root: nn.Module, name: str) -> None:
    """Raises Unsupported where an adapter is loaded: it changes pictures and the names of tensors, on or off."""
    held = next((part for part, _ in root.named_modules() if part.endswith(BASE.rstrip("."))), "")
    if held:
        raise Unsupported(
            f"{name} has an adapter (LoRA) loaded, at {held.rpartition('.')[0]!r}. Fuse or unload it first "
            "(pipeline.fuse_lora() and unload_lora_weights()), so that the model is its tensors."
        )


def refuse_odd(root: nn.Module, name: str) -> None:
    """Raises Damaged where a tensor holds NaN or infinity. Cost: one pass, as fast as memory is read."""
    odd = [key for key, t in tensors_of(root).items() if t.is_floating_point() and t.numel() and not _finite(t)]
    if odd:
        raise Damaged(
            f"{len(odd)} tensors of {name} hold numbers that are not finite, first {odd[0]!r}: training diverged, or "
            "they are too large for this precision (try float32)."
        )


def _finite(t: Tensor) -> bool:
    """By its least and its greatest number, which NaN is both of; asking each number is twenty times as slow."""
    return all(bool(end.isfinite()) for end in torch.aminmax(t.detach()))


def _read(files: Iterable[Path]) -> dict[str, Tensor]:
    return {key: value for file in files for key, value in load_file(str(file)).items()}
