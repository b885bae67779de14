"""Edits of a ledger made anew, once one that they were made on top of is taken out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from palimpsest.core import catalog
from palimpsest.core.concept import Request
from palimpsest.core.errors import BadRequest, PalimpsestError
from palimpsest.core.fingerprint import tensors_of
from palimpsest.core.method import ModelEdit
from palimpsest.core.patch import Patch, compose
from palimpsest.data.ledger import Book, Entry, Under


def remade(book: Book, gone: Entry, patch_of: Callable[[Entry], Patch], host: Any) -> list[tuple[Entry, Patch]]:
    """All edits that stand on one that goes, and all that stand on these, as they are without it.

    Args:
        gone: the edit that is taken out.
        patch_of: reads an entry's patch.
        host: the ledger's model; unchanged afterwards.

    Returns:
        The new entries with their patches, in the book's order; names, scales, notes and switches stay.

    Raises:
        BadRequest: an edit does not say how it was made, or cannot be made by that alone.

    Cost: that of making each of them.
    """
    instead = {gone.sha256: ""}  # the hash of what takes an edit's place
    patches = {e.sha256: patch_of(e) for e in book.entries}
    made: list[tuple[Entry, Patch]] = []
    for entry in book.entries:  # an edit is added after those that it stands on
        if entry is gone or not any(u.sha256 in instead for u in entry.on_top_of):
            continue
        now = [
            replace(u, sha256=instead.get(u.sha256, u.sha256)) for u in entry.on_top_of if instead.get(u.sha256, "-")
        ]
        below = tuple(sorted(now, key=lambda u: u.sha256))
        if lost := [u.name for u in below if u.sha256 not in patches]:
            raise BadRequest(
                f"{entry.name} was also made on top of {lost[0]}, which is dropped, and cannot be made anew. Drop it."
            )
        patch = _again(entry, patches[entry.sha256], below, patches, host)
        new = replace(entry, sha256=patch.sha256(), made_on=patch.base, on_top_of=below)
        patches[new.sha256], instead[entry.sha256] = patch, new.sha256
        made.append((new, patch))
    return made


def _again(entry: Entry, old: Patch, below: Sequence[Under], patches: Mapping[str, Patch], host: Any) -> Patch:
    """One edit made anew on a model with those that it now stands on."""
    told = old.provenance
    try:
        request, cls = Request.from_plain(told["request"]), catalog.load(told["method"])
        system = cls(**told["parameters"])
        if not isinstance(system, ModelEdit):
            raise BadRequest(f"{told['method']} is no system that edits a model.")
        shapes = {name: t.shape for name, t in tensors_of(host.root).items()}
        under = [replace(patches[u.sha256], base=host.fingerprint(), hooks=(), words={}).scaled(u.scale) for u in below]
        with compose(*under, overlap="sum", shapes=shapes).applied(host) if under else nullcontext():
            return system(host, request, seed=told["seed"])
    except (KeyError, TypeError, PalimpsestError) as e:
        why = f"its patch does not say {e}" if isinstance(e, KeyError) else str(e)
        raise BadRequest(
            f"{entry.name} cannot be made anew: {why} Nothing was changed. Switch the edit below it off, drop both, or "
            "force it: what stands on it is then marked as stale."
        ) from e
