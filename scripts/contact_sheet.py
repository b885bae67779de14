"""Draw the contact sheets docs/img/glyphs.png and docs/img/faces.png.

Run as `python scripts/contact_sheet.py [glyphs|faces]`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from palimpsest.worlds.drawing import STYLES
from palimpsest.worlds.faces import FACES
from palimpsest.worlds.glyphs import GLYPHS, visible

FOLDER = Path(__file__).parent.parent / "docs" / "img"
GAP = 2


def sheet(images: Tensor, columns: int) -> Image.Image:
    """(n, 3, h, w) pictures in rows of `columns`, a thin white gap between them, at their own size."""
    tiles = torch.nn.functional.pad(images, (0, GAP, 0, GAP), value=1.0)
    n, channels, h, w = tiles.shape
    rows = n // columns
    page = tiles[: rows * columns].view(rows, columns, channels, h, w).permute(0, 3, 1, 4, 2)
    page = page.reshape(rows * h, columns * w, channels)[:-GAP, :-GAP]
    return Image.fromarray((page * 255).round().byte().numpy())


def save(image: Image.Image, path: Path) -> None:
    """Write beside, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    image.save(beside, format="PNG", optimize=True)
    beside.replace(path)


def glyphs() -> Image.Image:
    """Every subject (columns) in every style (rows), then two rows of scenes with two subjects."""
    generator = torch.Generator().manual_seed(7)
    columns, rows = len(GLYPHS.vocabulary["subject"]), len(STYLES)
    subject = torch.arange(columns).repeat(rows)
    style = torch.arange(rows).repeat_interleave(columns)
    colour = (subject + 3 * style) % len(GLYPHS.vocabulary["colour"])
    shows = visible()[colour].float()
    background = torch.multinomial(shows, 1, generator=generator).squeeze(1)
    grid = {"subject": subject, "style": style, "colour": colour, "background": background}
    single = GLYPHS.draw({**grid, "position": torch.zeros_like(subject)}, generator=generator)
    pairs = 2 * columns
    scenes = GLYPHS.draw({"relation": torch.arange(pairs) % 2}, generator=generator)
    return sheet(torch.cat([single.images, scenes.images]), columns)


def faces() -> Image.Image:
    """The first twenty-four people (columns) in every style (rows), their other attributes at random."""
    generator = torch.Generator().manual_seed(7)
    columns, rows = 24, len(STYLES)
    labels = FACES.sample(columns * rows, generator=generator)
    labels["identity"] = torch.arange(columns).repeat(rows)
    labels["style"] = torch.arange(rows).repeat_interleave(columns)
    return sheet(FACES.draw(labels, generator=generator).images, columns)


def main() -> None:
    """Draw the sheets that are asked for, both by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("world", nargs="?", choices=["glyphs", "faces"], help="both without it")
    asked = parser.parse_args().world
    for world in [asked] if asked else ["glyphs", "faces"]:
        path = FOLDER / f"{world}.png"
        save({"glyphs": glyphs, "faces": faces}[world](), path)
        print(path)


if __name__ == "__main__":
    main()
