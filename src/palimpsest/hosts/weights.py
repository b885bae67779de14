"""A model's fingerprint, hashed again only when its tensors have changed."""

from __future__ import annotations

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
