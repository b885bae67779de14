"""What the header of a safetensors file says: names, shapes and types of its tensors, without any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from palimpsest.core.errors import Damaged
from palimpsest.core.patch import refuse_pickle

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Header:
    """What the header of a safetensors file says.

    Args:
        shapes: of each tensor by name. kinds: each tensor's type by name ("F16", "F8_E4M3").
        metadata: what whoever wrote the file put beside.
    """

    path: Path
    shapes: Shapes
    kinds: Mapping[str, str]
    metadata: Mapping[str, str]

    @staticmethod
    def of(path: Path) -> Header:
        """Raises Damaged where the file is no whole safetensors file."""
        refuse_pickle(path)
        try:
            with safe_open(path, framework="pt") as held:
                slices = {key: held.get_slice(key) for key in held.keys()}  # noqa: SIM118 (no dict)
                shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
                kinds = {key: part.get_dtype() for key, part in slices.items()}
                return Header(path, shapes, kinds, dict(held.metadata() or {}))
        except (SafetensorError, OSError) as e:
            raise Damaged(f"{path} cannot be read as safetensors: {e}. It is truncated or damaged.") from e

    def under(self, *prefixes: str) -> Shapes:
        """The tensors under the first of these prefixes that any tensor has, without it."""
        prefix = self.prefix(*prefixes)
        return {} if prefix is None else {k[len(prefix) :]: s for k, s in self.shapes.items() if k.startswith(prefix)}

    def prefix(self, *prefixes: str) -> str | None:
        """The first of these that any tensor's name begins with."""
        return next((p for p in prefixes if any(key.startswith(p) for key in self.shapes)), None)
