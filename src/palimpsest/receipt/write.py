"""Writes receipt.json and receipt.html. The page is a pure function of the JSON and the pictures in it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from palimpsest.core.files import write_text
from palimpsest.probes.evidence import Evidence
from palimpsest.receipt.build import sealed
from palimpsest.receipt.downloads import files, link, whole
from palimpsest.receipt.page import fill
from palimpsest.receipt.view import view

JSON_FILE, HTML_FILE = "receipt.json", "receipt.html"
BUDGET = 2_000_000  # bytes of pictures and of the receipt inside; base64 adds a third, the page stays under 3 MB
SHOWN = {"target": 12, "neighbour": 6, "unrelated": 4, "empty": 6}  # pairs a concept
LOSSLESS = 128  # pixels of the longer side up to which pictures are kept as they are


def thumbnails(data: Mapping[str, Any], evidence: Evidence) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Chooses and encodes the pictures of the page.

    Small pictures are kept as they are (lossless WebP); larger ones become 192-pixel copies. Fewer are shown where
    all would not fit the page's budget.

    Returns:
        The receipt with `shown` filled and sealed again, and "set/row" -> WebP bytes.
    """
    chosen = _chosen(evidence)
    pictures: dict[str, bytes] = {}
    spent = len(whole(data).encode())
    for row in chosen:
        pair = {f"{which}/{row}": _encode(evidence.pictures[which][row]) for which in ("before", "after")}
        spent += sum(map(len, pair.values()))
        if spent > BUDGET:
            break
        pictures |= pair
    shown = [{"picture": k, "sha256": hashlib.sha256(v).hexdigest()} for k, v in pictures.items()]
    return sealed({**data, "shown": shown}), pictures


def render(data: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The page as HTML text: one file, no script, no network."""
    sources = {k: "data:image/webp;base64," + base64.b64encode(v).decode() for k, v in pictures.items()}
    saved = [(name, link(name, text)) for name, text in files(data).items()]
    return fill("receipt.html.j2", {"saved": saved, **view(data, sources)})


def write(folder: Path, data: Mapping[str, Any], pictures: Mapping[str, bytes]) -> tuple[Path, Path]:
    """receipt.json and receipt.html in a folder; each is either whole or not there."""
    page = write_text(folder / HTML_FILE, render(data, pictures))
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return write_text(folder / JSON_FILE, text), page


def _chosen(evidence: Evidence) -> list[int]:
    """Rows to show: of each group first every prompt's first seed, then further seeds; groups take turns, so that a
    small budget still shows each."""
    columns = []
    for g, group in enumerate(evidence.plan.groups):
        rows = evidence.plan.rows(group=g).tolist()
        ordered = [r for s in range(group.seeds) for r in rows[s :: group.seeds]]
        columns.append(ordered[: SHOWN[group.role]])
    return [c[i] for i in range(max(map(len, columns))) for c in columns if i < len(c)]


def _encode(picture: Tensor) -> bytes:
    """WebP of (3, H, W) uint8."""
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    file = io.BytesIO()
    if max(image.size) <= LOSSLESS:
        image.save(file, "WEBP", lossless=True, quality=80, method=4)
    else:
        image.thumbnail((192, 192), Image.Resampling.LANCZOS)
        image.save(file, "WEBP", quality=82, method=4)
    return file.getvalue()


def decode(encoded: bytes) -> Tensor:
    """(3, H, W) uint8 of WebP bytes."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.reshape(image.height, image.width, 3).permute(2, 0, 1).contiguous()
