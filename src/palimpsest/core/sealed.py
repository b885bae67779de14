"""The file of a patch: what its header may say, how it is sealed, and how it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from palimpsest.core.declared import OPEN, Matching, Sha256, Within, fitted, parsed, shown
from palimpsest.core.delta import KINDS, REAL, Delta
from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.core.files import read_tensors
from palimpsest.core.fingerprint import digest
from palimpsest.core.hook import Hook
from palimpsest.core.stored import Tensors
from palimpsest.core.streams import Hashes, Stream, hashed
from palimpsest.core.words import Word, sound

FORMAT = 2
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
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


class Deltas(Mapping[str, Delta]):
    """A patch's deltas that lie in its file, each read when it is asked for and not kept.

    Args:
        kinds: the form of each by the tensor's name, as the header says. held: the file's tensors.

    Raises:
        Damaged: the file lacks a tensor of one of them.
    """

    def __init__(self, kinds: Mapping[str, str], held: Tensors) -> None:
        self.kinds, self._held = kinds, held
        fields_of = {kind: [f.name for f in fields(cls)] for kind, cls in KINDS.items()}
        self.keys_in_file = {f"delta|{name}|{field}" for name, kind in kinds.items() for field in fields_of[kind]}
        if lost := self.keys_in_file - set(held.names()):
            raise Damaged(
                f"{held.path} lacks the tensor {shown(min(lost), 120)} that its header names; get a fresh copy."
            )

    @property
    def nbytes(self) -> int:
        """Bytes of all of them, none of which is read for it."""
        return sum(self._held.shape(k).numel() * self._held.dtype(k).itemsize for k in self.keys_in_file)

    def __getitem__(self, name: str) -> Delta:
        cls = KINDS[self.kinds[name]]
        found = cls(**{f.name: self._held.whole(f"delta|{name}|{f.name}") for f in fields(cls)})
        found.fits()
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.kinds)

    def __len__(self) -> int:
        return len(self.kinds)


def finite(t: Tensor) -> bool:
    """Whether a tensor holds neither infinities nor NaN. Its least and largest number tell, in a tenth of the time that
    a look at each takes."""
    return t.dtype not in REAL or not t.numel() or bool(torch.isfinite(torch.stack(t.aminmax())).all())


def held_finite(stream: Stream, name: str) -> Stream:
    """The same tensor of a patch, refused as it is written where a number in it is not finite.

    Raises:
        BadRequest: when its blocks are asked for.
    """

    def blocks() -> Iterator[Tensor]:
        for block in stream.blocks():
            if not finite(block):
                raise BadRequest(
                    f"The change of {shown(name, 120)} holds numbers that are not finite, so no patch is written; look "
                    "for such numbers in the models, or for weights that are too large."
                )
            yield block

    return Stream(stream.dtype, stream.shape, blocks)


class Contents(NamedTuple):
    """What a patch's file holds beside what its header says."""

    deltas: Mapping[str, Delta]
    hooks: tuple[Hook, ...]
    words: Mapping[str, Word]


def fit(t: Tensor, key: str, where: str) -> Tensor:
    """A tensor of a file, once it is seen that a patch may hold it.

    Raises:
        Damaged: it is of another type, or holds numbers that are not finite.
    """
    if t.dtype not in (*REAL, *WHOLE):
        raise Damaged(f"{where}: {shown(key, 120)} is {t.dtype}; no patch holds that.")
    if not finite(t):
        raise Damaged(f"{where}: {shown(key, 120)} holds numbers that are not finite.")
    return t


def contents(header: Header, tensors: Mapping[str, Tensor], where: str) -> Contents:
    """The deltas, hooks and words of a file's tensors.

    Raises:
        Damaged: tensors are missing, there are others, or a patch may not hold them.
    """
    left = dict(tensors)

    def taken(key: str) -> Tensor:
        if key not in left:
            raise Damaged(f"{where} lacks the tensor {shown(key, 120)} that its header names; get a fresh copy.")
        return left.pop(key)

    deltas = {
        name: KINDS[kind](**{f.name: taken(f"delta|{name}|{f.name}") for f in fields(KINDS[kind])})
        for name, kind in header["deltas"].items()
    }

    def under(own: str) -> dict[str, Tensor]:
        return {k[len(own) :]: taken(k) for k in list(left) if k.startswith(own)}

    hooks = [Hook(**hook, tensors=under(f"hook|{i}|")) for i, hook in enumerate(header["hooks"])]
    told = header.get("words", [])
    words = {e["word"]: Word(vectors=under(f"word|{i}|"), reads_as=e["reads_as"]) for i, e in enumerate(told)}
    if len(words) < len(told):
        raise Damaged(f"{where} names one word twice; get a fresh copy.")
    if left:
        raise Damaged(f"{where} holds the tensor {shown(min(left), 120)}, which its header does not name.")
    for key, t in tensors.items():
        fit(t, key, where)
    for delta in deltas.values():
        delta.fits()
    try:
        sound(words)
    except BadRequest as e:
        raise Damaged(f"{where}: {e}") from e
    return Contents(deltas, tuple(hooks), words)


def text(header: Mapping[str, Any]) -> str:
    """The header as it is written: the same bytes for the same content."""
    return json.dumps(header, sort_keys=True)


def seal(header: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 of a patch. Format 2: of the header and each tensor's own sha256, so that a patch can be sealed while its
    tensors stream by in any order."""
    if header["format"] == 1:
        return digest(dict(tensors), salt=text(header))
    return seal_of(header, hashed(tensors))


def seal_of(header: Mapping[str, Any], each: Hashes) -> str:
    """The same of tensors that were hashed already; format 2 alone."""
    return hashlib.sha256(json.dumps([each, header], sort_keys=True).encode()).hexdigest()


def read(path: Path) -> tuple[Header, str, dict[str, Tensor]]:
    """Header, seal and tensors of a patch's file, checked against the declaration, the seal not yet.

    Raises:
        Damaged: no such file, or not a patch.
    """
    meta, tensors = read_tensors(path, "a patch")
    return *_told(path, meta), tensors


def opened(path: Path) -> tuple[Header, str, Tensors]:
    """The same, its tensors still in the file."""
    if not path.is_file():
        raise Damaged(f"There is no patch at {path}.")
    tensors = Tensors(path)
    return *_told(path, tensors.metadata), tensors


def _told(path: Path, meta: Mapping[str, str]) -> tuple[Header, str]:
    """Header and seal."""
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
    return header, str(seal)  # type: ignore[return-value]
