"""The file of a patch: what its header may say, how it is sealed, and how it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from torch import Tensor

from palimpsest.core.declared import OPEN, Matching, Sha256, Within, fitted, parsed
from palimpsest.core.errors import Damaged
from palimpsest.core.files import read_tensors
from palimpsest.core.fingerprint import digest, raw_bytes

FORMAT = 2
MOST_HEADER = 8 * 2**20
"""Bytes of a patch's header: ten thousand concepts with their prompts, or the names of a million tensors, are less."""


class Provenance(TypedDict, total=False):
    """What is known of the fields that something reads; others may stand beside them."""

    method: str
    name: str
    parameters: dict[str, Any]
    request: dict[str, Any]
    seed: int
    seconds: Annotated[float, Within(least=0)]  # cost: in format 1 only
    forwards: dict[str, Annotated[int, Within(least=0)]]
    peak_bytes: int | None
    versions: dict[str, str]
    merged: list[dict[str, Any]]
    edited: str


class HookEntry(TypedDict):
    id: Annotated[str, Within(1, 200)]
    params: dict[str, Any]


class WordEntry(TypedDict):
    word: Annotated[str, Within(1, 64)]
    reads_as: Annotated[str, Within(most=200)]


class _Fields(TypedDict):
    format: Literal[1, 2]
    base: Annotated[str, Matching(r"[0-9a-f]{64}|", "a model's fingerprint")]
    deltas: dict[str, Literal["dense", "low_rank", "rows", "sparse"]]
    hooks: Annotated[list[HookEntry], Within(most=1000)]
    provenance: Annotated[Provenance, OPEN]


class Header(_Fields, total=False):
    words: Annotated[list[WordEntry], Within(1, 1000)]  # left out where there are none; older readers refuse it by name


class Sealed(Header, total=False):
    sha256: Sha256  # from format 2 on; before, it stood beside the header


def text(header: Mapping[str, Any]) -> str:
    """The header as it is written: the same bytes for the same content."""
    return json.dumps(header, sort_keys=True)


def seal(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """sha256 of a patch. Format 2: of the header and each tensor's own sha256, so that a patch can be sealed while its
    tensors stream by in any order."""
    if header["format"] == 1:
        return digest(tensors, salt=text(header))
    each = {k: [str(t.dtype), list(t.shape), hashlib.sha256(raw_bytes(t)).hexdigest()] for k, t in tensors.items()}
    return hashlib.sha256(json.dumps([each, header], sort_keys=True).encode()).hexdigest()


def read(path: Path) -> tuple[Header, dict[str, Tensor], str]:
    """Header, tensors and seal of a patch's file, checked against the declaration, the seal not yet.

    Raises:
        Damaged: no such file, or not a patch.
    """
    meta, tensors = read_tensors(path, "a patch")
    if "palimpsest" not in meta:
        raise Damaged(f"{path} is a safetensors file but not a palimpsest patch (no 'palimpsest' in its header).")
    if len(meta["palimpsest"]) > MOST_HEADER:
        raise Damaged(f"{path} has a header of more than {MOST_HEADER:,} bytes; no patch needs that.")
    of_any = parsed(meta["palimpsest"], dict, f"{path}: its header")
    number = of_any.get("format")
    if isinstance(number, int) and number > FORMAT:
        raise Damaged(f"{path} has patch format {number}; this version reads up to {FORMAT}: upgrade.")
    header = dict(fitted(of_any, Sealed, f"{path}: its header"))
    seal = meta.get("palimpsest_sha256") if header["format"] == 1 else header.pop("sha256", None)
    return header, tensors, str(seal)  # type: ignore[return-value]
