"""The pictures of a page: which are shown, how they are kept, and whether what a page shows is what was judged."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from palimpsest.probes.evidence import Evidence
from palimpsest.receipt.document import alike, look, picture_hash, sealed
from palimpsest.receipt.downloads import files
from palimpsest.receipt.finding import Finding, differs, same
from palimpsest.receipt.subject import Pair

BUDGET = 2_000_000  # bytes of pictures and of the receipt inside; base64 adds a third, the page stays under 3 MB
SHOWN = {"target": 12, "unrelated": 4}  # pairs a concept; of other roles 6
LOSSLESS = 128  # pixels of the longer side up to which pictures are kept as they are
SMALL = 192  # pixels of the longer side of the copies of larger ones
_SOURCE = re.compile(r'src="data:image/webp;base64,([A-Za-z0-9+/=]*)"')
_CHUNKS = {b"VP8L", b"VP8 "}  # what our encoder writes: one frame, no metadata


def thumbnails(
    data: Mapping[str, Any], evidence: Evidence, pairs: Sequence[Pair]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Chooses and encodes the pictures of the page.

    Small pictures are kept as they are (lossless WebP); larger ones become 192-pixel copies. Fewer are shown where
    all would not fit the page's budget.

    Returns:
        The receipt with `shown` filled and sealed again, and "set/row" -> WebP bytes.
    """
    pictures: dict[str, bytes] = {}
    spent = len(files(data).get("receipt.json", "").encode())
    for row in _chosen(pairs):
        pair = {f"{which}/{row}": encode(evidence.gallery[which][row]) for which in ("before", "after")}
        spent += sum(map(len, pair.values()))
        if spent > BUDGET:
            break
        pictures |= pair
    shown = [{"picture": k, "sha256": hashlib.sha256(v).hexdigest()} for k, v in pictures.items()]
    return sealed({**data, "shown": shown}), pictures


def _chosen(pairs: Sequence[Pair]) -> list[int]:
    """Rows to show: of each concept first every prompt's first seed, then further seeds; concepts take turns, so that
    a small budget still shows each."""
    columns: dict[tuple[str, str], list[tuple[int, int]]] = {}
    taken: dict[tuple[str, str, str], int] = {}
    for pair in pairs:
        prompt = (pair.role, pair.name, pair.prompt)
        taken[prompt] = taken.get(prompt, -1) + 1
        columns.setdefault(prompt[:2], []).append((taken[prompt], pair.row))
    rows = [[row for _, row in sorted(column)[: SHOWN.get(role, 6)]] for (role, _), column in columns.items()]
    return [c[i] for i in range(max(map(len, rows), default=0)) for c in rows if i < len(c)]


def encode(picture: Tensor) -> bytes:
    """WebP of (3, H, W) uint8."""
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    file = io.BytesIO()
    if max(image.size) <= LOSSLESS:
        image.save(file, "WEBP", lossless=True, quality=80, method=4)
    else:
        image.thumbnail((SMALL, SMALL), Image.Resampling.LANCZOS)
        image.save(file, "WEBP", quality=82, method=4)
    return file.getvalue()


def decode(encoded: bytes, most: int = SMALL) -> Tensor:
    """(3, H, W) uint8 of WebP bytes as `encode` writes them.

    Raises:
        ValueError: another format, further data inside or behind the picture, or sides longer than `most`.
    """
    if encoded[:4] != b"RIFF" or encoded[8:12] != b"WEBP" or encoded[12:16] not in _CHUNKS:
        raise ValueError("it is no plain WebP picture")
    riff, chunk = struct.unpack("<I", encoded[4:8])[0], struct.unpack("<I", encoded[16:20])[0]
    if len(encoded) != riff + 8 or riff + 8 != 20 + chunk + chunk % 2:
        raise ValueError("there is something behind the picture")
    try:
        image = Image.open(io.BytesIO(encoded), formats=("WEBP",))
        if max(image.size) > most:
            raise ValueError(f"it is {image.size[0]} x {image.size[1]} pixels, at most {most} are expected")
        image = image.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as e:
        raise ValueError(f"it cannot be decoded ({e})") from e
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.reshape(image.height, image.width, 3).permute(2, 0, 1).contiguous()


def shown_in(page: str) -> dict[str, bytes]:
    """The pictures of a page by sha256."""
    bodies = [base64.b64decode(b) for b in _SOURCE.findall(page)]
    return {hashlib.sha256(b).hexdigest(): b for b in bodies}


def check(data: Mapping[str, Any], page: str) -> tuple[dict[str, bytes], list[Finding]]:
    """The pictures of a page by "set/row", {} where they are not those that the receipt states; and what was found.

    Small pictures must be those that were judged, bit for bit. Copies of larger ones are held against a 4 x 4 copy,
    which finds an exchange but proves nothing: they are compared with pictures drawn again by `resembles`.
    """
    by_hash, of = shown_in(page), ("pictures", "shown", "size")
    missing = [s["picture"] for s in data["shown"] if s["sha256"] not in by_hash]
    if missing or set(by_hash) - {s["sha256"] for s in data["shown"]}:
        more = " and more" if len(missing) > 3 else ""
        text = f"{', '.join(missing[:3]) or 'some'}{more} differ from the receipt's hashes"
        return {}, [differs("pictures of the page", text, *of)]
    pictures = {s["picture"]: by_hash[s["sha256"]] for s in data["shown"]}
    for name, encoded in pictures.items():
        if wrong := _wrong(data, name, encoded):
            return {}, [differs("pictures of the page", f"{name} is not the picture that was judged: {wrong}", *of)]
    if not pictures:
        return pictures, [same("pictures of the page", "there are none, as stated", *of)]
    if max(data["size"]) <= LOSSLESS:
        return pictures, [same(f"{len(pictures)} pictures of the page", "those that were judged, bit for bit", *of)]
    text = f"they are copies of larger ones, like them at 4 x 4 pixels; --remeasure draws {len(pictures)} of them again"
    return pictures, [Finding(status="not asked", what="pictures of the page", detail=text, of=of)]


def _wrong(data: Mapping[str, Any], name: str, encoded: bytes) -> str:
    """Why bytes of the page are not the picture that the receipt states; "" where they may be."""
    which, row = name.split("/")
    rows = data["pictures"].get(which, [])
    if int(row) >= len(rows):
        return "the receipt has no such picture"
    stated, size = rows[int(row)], tuple(data["size"] or ())
    if len(size) != 2:
        return "the receipt does not say how large pictures are"
    try:
        picture = decode(encoded)
    except ValueError as e:
        return str(e)
    if max(size) <= LOSSLESS:
        return "" if picture_hash(picture) == stated["sha256"] else "its pixels have another hash"
    if max(picture.shape[1:]) != min(SMALL, max(size)):
        return f"it is {max(picture.shape[1:])} pixels long, a copy has {SMALL}"
    return "" if alike(look(picture), stated["look"]) else "it is another one at 4 x 4 pixels"


def resembles(encoded: bytes, picture: Tensor) -> bool:
    """Whether bytes of a page are a copy of a picture (3, H, W) uint8, up to rounding: 4 grey levels at full size."""
    mine, due = decode(encoded).float(), decode(encode(picture)).float()
    return mine.shape == due.shape and float((mine - due).square().mean().sqrt()) <= 4.0
