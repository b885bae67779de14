"""A model's tensors: their fingerprint, hashed again only when they have changed, and whether files hold them all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from safetensors import safe_open
from torch import nn

from palimpsest.core.fingerprint import fingerprint, quick_state


class Weights:
    """Remembers the last fingerprint of `root` together with the quick state that it belongs to."""

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._seen: dict[str, tuple[int, int, int]] | None = None
        self._fingerprint = ""

    def fingerprint(self) -> str:
        """sha256 of all tensors. Cost: one fast pass; a hash of all bytes where anything changed."""
        state = quick_state(self._root)
        if state != self._seen:
            self._fingerprint, self._seen = fingerprint(self._root), state
        return self._fingerprint


PREFIX = "text_model."  # some versions of transformers write it, some do not; each reads what it can


def absent(module: nn.Module, files: Iterable[Path]) -> list[str]:
    """Parameters that none of the safetensors files hold: a library may have filled them at random without a word.

    A tensor that is shared under several names counts as held under any of them.
    """
    held: set[str] = set()
    for file in files:
        with safe_open(file, framework="pt") as stored:
            held |= {name.removeprefix(PREFIX) for name in stored.keys()}  # noqa: SIM118
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [every[0] for every in names.values() if not {n.removeprefix(PREFIX) for n in every} & held]
