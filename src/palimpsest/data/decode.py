"""One encoded picture as 8-bit colours, whatever its depth; and in words why a broken one cannot be decoded."""

from __future__ import annotations

import re
import warnings
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from palimpsest.core.errors import BadRequest

# Decoders that start another program, or that know a kind of file without being able to decode it.
CLOSED = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "IPTC", "XVTHUMB"})
# Formats that are known by their first bytes, for files whose names do not end like a picture's.
MARKED = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
DEEP = {"PNG": 16, "PPM": 16, "JPEG2000": 16}  # bits that the decoder scales to, where it gives more than 8


class Unreadable(Exception):
    """Why a picture cannot be decoded, in words that are the same in every run."""


class Decoded(NamedTuple):
    """(H, W, 3) uint8, and what the decoder warned of."""

    colours: np.ndarray
    warned: tuple[str, ...]


def decoded(encoded: bytes, size: int | None = None) -> Decoded:
    """A picture, turned as its camera says, in colours of 8 bits.

    Integers of any depth are scaled by their range: round(255 v / (2^bits - 1)). Floating-point pictures must lie in
    [0, 1] and are scaled by 255. An animation's first frame is read.

    Args:
        size: side in pixels; the largest square in the middle is resized to it (bilinear). None: as it is.

    Raises:
        Unreadable: it is no picture, broken, of an unknown range, or so large that it is taken for an attack.
    """
    from PIL import Image, ImageOps

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with Image.open(BytesIO(encoded), formats=formats()) as picture:
                upright = ImageOps.exif_transpose(picture)
                colour = _colour(upright, picture)
                colour = colour if size is None else fitted(colour, size)
        except Unreadable:
            raise
        except Exception as e:  # decoders let out whatever they trip over: struct.error, KeyError, ZeroDivisionError
            raise Unreadable(reason(e)) from e
    told = tuple(dict.fromkeys(reason(w.message) for w in caught if not issubclass(w.category, DeprecationWarning)))
    return Decoded(np.asarray(colour), told)


def reason(error: Exception | Warning | str) -> str:
    """The first line of an error without what differs from run to run, such as the address of an object."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "no picture that can be decoded"
    text = (str(error).strip().splitlines() or [""])[0]
    text = re.sub(r"\s*<[^<>]*\bat 0x[0-9a-fA-F]+[^<>]*>", "", text)
    text = "".join(c if c.isprintable() else "?" for c in text)[:200]
    plain = (
        isinstance(error, (str, OSError, ValueError, SyntaxError, Warning)) or "bomb" in type(error).__name__.lower()
    )
    return text if plain and text else f"{type(error).__name__}{': ' if text else ''}{text}"


@cache
def formats() -> tuple[str, ...]:
    """The formats that are decoded."""
    from PIL import Image

    Image.init()
    return tuple(sorted(set(Image.OPEN) - CLOSED))


@cache
def _endings() -> frozenset[str]:
    from PIL import Image

    return frozenset(end for end, kind in Image.registered_extensions().items() if kind in formats())


def is_picture(file: Path) -> bool:
    """Whether a file is one that the decoder opens: its name ends like a picture's, or its first bytes are one's."""
    from PIL import Image

    formats()  # reads the plugins, which know the endings
    if file.suffix.lower() in _endings():
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(file, formats=MARKED):
                return True
        except Exception:  # whatever the decoder says of something else
            return False


def _colour(upright: Any, picture: Any) -> Any:
    """The picture in RGB of 8 bits."""
    from PIL import Image

    if upright.mode == "F":
        values = np.asarray(upright, dtype=np.float64)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise Unreadable(
                f"it holds floating-point numbers from {values.min():g} to {values.max():g}, whose range is not known; "
                "save it with values in [0, 1], or as integers"
            )
        top = 1.0
    elif upright.mode.startswith("I"):
        values, top = _integers(upright, picture)
    else:
        return upright.convert("RGB")
    grey = np.rint(255 * values / top).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _integers(upright: Any, picture: Any) -> tuple[np.ndarray, float]:
    """Values of a picture with more than 8 bits, and the largest that its depth allows."""
    values = np.asarray(upright)
    bits, signed, inverted = DEEP.get(picture.format), False, False
    if picture.format == "TIFF":
        tags = picture.tag_v2
        bits, signed, inverted = int(tags.get(258, (1,))[0]), tags.get(339, (1,))[0] == 2, tags.get(262) == 0
    if bits is None or signed:
        kind = "signed integers" if signed else f"integers of {picture.format}"
        raise Unreadable(f"it holds {kind}, whose range is not known; save it as a PNG of 8 or 16 bits")
    wide = values.astype(np.int64) % 2**bits  # 32 bits come with the largest ones as negative numbers
    top = 2**bits - 1
    return (top - wide if inverted else wide).astype(np.float64), float(top)


def fitted(picture: Any, size: int) -> Any:
    """The largest square in the middle of a Pillow image, at size x size."""
    from PIL import Image, ImageOps

    return picture if picture.size == (size, size) else ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)


def stacked(images: list[np.ndarray], names: list[str], where: str) -> np.ndarray:
    """(n, 3, H, W) uint8 of pictures of one size.

    Raises:
        BadRequest: they differ in size.
    """
    shape = images[0].shape
    for image, name in zip(images, names, strict=True):
        if image.shape != shape:
            one, other = (f"{s[1]}x{s[0]}" for s in (shape, image.shape))
            raise BadRequest(
                f"The pictures of {where} differ in size: {names[0]} is {one}, {name} is {other}. "
                "Give the side to resize them to (size=..., --size ...)."
            )
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))
