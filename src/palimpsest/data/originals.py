"""A user's picture with everything that its file says, and the same file again with other colours in some places."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

from palimpsest.data.decode import Unreadable, decoded, formats, reason
from palimpsest.data.marking import Mark, marked

WRITTEN = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
"""Formats in which edited pictures are written."""
LOSSLESS_TIFF = ("raw", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "lzma", "zstd")
NATIVE = ("RGB", "RGBA", "L", "LA", "CMYK", "I;16", "I;16B", "I;16L")
"""Modes that are written as they were read; others become RGB, with their transparency."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Original:
    """A decoded picture.

    Args:
        colours: (H, W, 3) uint8, upright: what a model sees, and what is compared.
        stored: as the file has it, a Pillow image, not turned.
        encoded: the file's bytes.
        told: what changes beside the colours when it is written again, in words.
    """

    colours: np.ndarray
    stored: Any
    encoded: bytes
    told: tuple[str, ...]

    @property
    def format(self) -> str:
        return self.stored.format

    @property
    def height(self) -> int:
        return self.colours.shape[0]

    @property
    def width(self) -> int:
        return self.colours.shape[1]

    @property
    def lossless(self) -> bool:
        """Whether the written file holds the very colours that it was given."""
        if self.format == "TIFF":
            return self.stored.info.get("compression", "raw") in LOSSLESS_TIFF
        return self.format in ("PNG", "BMP") or (self.format == "WEBP" and _lossless_webp(self.encoded))

    def rewritten(self, change: np.ndarray, mark: Mark | None) -> bytes:
        """The file with colours changed: same format, size, mode, orientation, profile, transparency, metadata.

        Args:
            change: (H, W, 3) float, in colours of [0, 1], upright; where it is 0 in all three a pixel stays what it is,
                in whatever numbers the file has it.
            mark: what the file then says of itself; None: nothing.
        """
        picture = _changed(self.stored, _turned_back(change, self.stored))
        out = BytesIO()
        picture.save(out, format=self.format, **_settings(self, picture, mark))
        return out.getvalue()


def original(encoded: bytes) -> Original:
    """A picture to be edited.

    Raises:
        Unreadable: it cannot be decoded, is of a format that is not written, or holds several pictures.
    """
    from PIL import Image

    colours = decoded(encoded).colours
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `decoded` has told what there is to tell
        try:
            stored = Image.open(BytesIO(encoded), formats=formats())
            frames = getattr(stored, "n_frames", 1)
            if stored.format == "MPO":  # a JPEG with previews behind it
                stored.format = "JPEG"
            if stored.format not in WRITTEN:
                raise Unreadable(f"{stored.format} is not written; save it as {', '.join(WRITTEN)}")
            if frames > 1 and stored.format != "JPEG":
                raise Unreadable(f"it holds {frames} pictures; save each in a file of its own")
            stored.load()
        except Unreadable:
            raise
        except Exception as e:  # as in `decoded`
            raise Unreadable(reason(e)) from e
    told = []
    if stored.mode not in NATIVE:
        told.append(f"{_kind(stored)} became colours of 8 bits")
    elif stored.format == "PNG" and encoded[24] == 16 and stored.mode in ("RGB", "RGBA", "LA"):
        told.append("16 bits a channel became 8")
    if frames > 1:
        told.append("previews behind the picture are left out")
    return Original(colours=colours, stored=stored, encoded=encoded, told=tuple(told))


def grey_levels(encoded: bytes) -> np.ndarray:
    """(H, W, 3) uint8 of a written picture, upright, for a look at what was written."""
    return decoded(encoded).colours


# -- colours ---------------------------------------------------------------------------------------------


def _turned_back(change: np.ndarray, stored: Any) -> np.ndarray:
    """An upright array as the file's rows and columns have it."""
    turn = stored.getexif().get(0x0112, 1)
    back = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
        8: lambda a: np.rot90(a, -1),
    }
    return np.ascontiguousarray(back.get(turn, lambda a: a)(change))


def _changed(stored: Any, change: np.ndarray) -> Any:
    """The stored picture with its colours changed, in its own mode where that is written."""
    from PIL import Image

    touched = (change != 0).any(2)
    mode = stored.mode
    if mode in ("L", "LA") or mode.startswith("I;16"):
        grey = change @ np.array([0.299, 0.587, 0.114])
        if mode.startswith("I;16"):
            values = np.asarray(stored)
            moved = np.clip(np.rint(values + 65535 * grey), 0, 65535).astype(values.dtype)
            return Image.frombytes(mode, stored.size, np.where(touched, moved, values).tobytes())
        values = np.asarray(stored.getchannel("L"))
        made = Image.fromarray(_moved(values, grey, touched))
        return made if mode == "L" else Image.merge("LA", (made, stored.getchannel("A")))
    if mode == "CMYK":
        return _inked(stored, change, touched)
    seen_through = "A" in stored.getbands() or (mode == "P" and "transparency" in stored.info)
    made = Image.fromarray(_moved(np.asarray(stored.convert("RGB")), change, touched[..., None]))
    if seen_through:
        made.putalpha(stored.convert("RGBA").getchannel("A"))
    return made


def _moved(values: np.ndarray, change: np.ndarray, touched: np.ndarray) -> np.ndarray:
    moved = np.clip(np.rint(values + 255.0 * change), 0, 255).astype(np.uint8)
    return np.where(touched, moved, values)


def _inked(stored: Any, change: np.ndarray, touched: np.ndarray) -> Any:
    """Four inks: black stays unless the new colour needs less of it; the others follow from the colour."""
    from PIL import Image

    inks = np.asarray(stored).astype(np.float64)
    colour = np.clip(np.asarray(stored.convert("RGB")) + 255.0 * change, 0, 255)
    black = np.minimum(inks[..., 3], 255 - colour.max(2))
    rest = np.maximum(255 - black, 1)[..., None]
    made = np.concatenate([255 * (1 - np.minimum(colour / rest, 1)), black[..., None]], 2)
    return Image.fromarray(np.where(touched[..., None], np.rint(made), inks).astype(np.uint8), mode="CMYK")


def _kind(stored: Any) -> str:
    names = {"P": "a palette", "PA": "a palette", "1": "black and white"}
    return names.get(stored.mode, f"mode {stored.mode}")


def _lossless_webp(encoded: bytes) -> bool:
    """Whether the picture's own part of the file is of the lossless kind."""
    at = 12
    while at + 8 <= len(encoded):
        kind, size = encoded[at : at + 4], int.from_bytes(encoded[at + 4 : at + 8], "little")
        if kind in (b"VP8L", b"VP8 "):
            return kind == b"VP8L"
        at += 8 + size + size % 2
    return False


# -- what the file says beside its colours ----------------------------------------------------------------


def _settings(original: Original, picture: Any, mark: Mark | None) -> dict[str, Any]:
    """How Pillow writes it: as the file was."""
    from PIL import JpegImagePlugin

    stored, info = original.stored, original.stored.info
    said: dict[str, Any] = {}
    if info.get("icc_profile") and (picture.mode == stored.mode or picture.mode in ("RGB", "RGBA")):
        said["icc_profile"] = info["icc_profile"]
    if "dpi" in info:
        said["dpi"] = info["dpi"]
    said |= marked(stored, mark)
    if original.format == "PNG" and "transparency" in info and picture.mode == stored.mode:
        said["transparency"] = info["transparency"]
    if original.format == "JPEG":
        # The file's own tables, so that blocks that did not change lose as little as can be.
        sampling = JpegImagePlugin.get_sampling(stored)
        said |= {"qtables": stored.quantization, "optimize": True, "progressive": bool(info.get("progressive"))}
        said |= {"subsampling": sampling} if sampling >= 0 else {}
    elif original.format == "WEBP":
        said |= {"lossless": True, "exact": True} if original.lossless else {"quality": 95, "method": 4}
    elif original.format == "TIFF":
        squeezed = info.get("compression", "raw")
        said["compression"] = squeezed if squeezed in (*LOSSLESS_TIFF, "jpeg") else "tiff_deflate"
    return said
