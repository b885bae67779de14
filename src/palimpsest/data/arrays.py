"""Pictures in arrays, as `.npz` files hold them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.core.pictures import Pictures
from palimpsest.data.dataset import Dataset
from palimpsest.data.decode import fitted
from palimpsest.data.raw import labels_of

KNOWN = ("images", "labels", "identity", "names", "classes", "captions", "masks")


def read_arrays(path: Path, size: int | None) -> Dataset:
    """An `.npz` file; see `from_arrays`.

    Raises:
        Damaged: it is truncated, damaged or holds Python objects.
    """
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except Exception as e:  # zipfile, zlib and numpy let out whatever they trip over
        raise Damaged(f"{path} cannot be read as arrays: {e}. It is truncated, damaged or holds Python objects.") from e
    return from_arrays(arrays, size=size, where=str(path))


def from_arrays(arrays: Mapping[str, np.ndarray], *, size: int | None = None, where: str = "the arrays") -> Dataset:
    """Pictures from arrays, named as in an `.npz` file.

    `images` (n, H, W), (n, H, W, 3) or (n, 3, H, W), unsigned integers or floats in [0, 1]; `labels`, and perhaps
    `identity`, `names`, `classes`, `captions` and `masks` (n, H, W). Further arrays of n texts or numbers become
    columns. Without `labels` the identities are the labels. Identities that are numbers are called s1, s2, ...

    Raises:
        BadRequest: an array is missing, of another shape or type, or labels are out of range.
    """
    if "images" not in arrays:
        raise BadRequest(f"{where} has no array 'images'; it has {', '.join(arrays) or 'none'}.")
    n = len(arrays["images"]) if arrays["images"].ndim else 0
    if not n:
        raise BadRequest(f"{where} has no pictures (there are none in 'images').")
    for name in ("labels", "identity", "names", "captions", "masks"):
        if name in arrays and (arrays[name].ndim < 1 or len(arrays[name]) != n):
            raise BadRequest(
                f"{where} has {n} pictures and {name!r} of {arrays[name].shape}; give one for each picture."
            )
    images = _as_colour(arrays["images"], where)
    names = _texts(arrays["names"]) if "names" in arrays else tuple(map(str, range(n)))
    columns = {name: _texts(value) for name, value in arrays.items() if name not in KNOWN and value.shape == (n,)}
    identity = arrays.get("identity")
    if identity is not None:
        named = _texts(identity)
        columns["identity"] = tuple(f"s{i}" for i in named) if identity.dtype.kind in "iu" else named
    known, labels = _texts(arrays.get("classes", np.empty(0, str))), arrays.get("labels")
    if labels is None:
        if "identity" not in columns:
            raise BadRequest(f"{where} has neither 'labels' nor 'identity'; a classifier's data needs one of them.")
        known = known or tuple(dict.fromkeys(columns["identity"]))
        labels = np.asarray(columns["identity"])
    read = labels_of(_plain(labels), known, names, where)
    masks = arrays.get("masks")
    samples = Pictures(
        images=_resized(images, size),
        names=names,
        labels=torch.from_numpy(read.labels),
        captions=_texts(arrays["captions"]) if "captions" in arrays else (),
        masks=None if masks is None else _resized(_as_colour(masks, where), size)[:, :1].float() / 255,
        columns=columns,
    )
    return Dataset(samples=samples, classes=read.classes, counted=read.counted)


def _plain(array: np.ndarray) -> list[object]:
    return list(_texts(array)) if array.dtype.kind in "SU" else array.tolist()


def _texts(array: np.ndarray) -> tuple[str, ...]:
    """Texts of an array of texts, bytes (UTF-8) or numbers."""
    return tuple(
        map(str, np.atleast_1d(np.char.decode(array, "utf-8", "replace") if array.dtype.kind == "S" else array))
    )


def _as_colour(images: np.ndarray, where: str) -> Tensor:
    """(n, 3, H, W) uint8; unsigned integers are scaled by their range, floats from [0, 1]."""
    kind, shape = images.dtype, images.shape
    last, first = len(shape) == 4 and shape[3] == 3, len(shape) == 4 and shape[1] == 3
    if len(shape) not in (3, 4) or (len(shape) == 4 and last == first) or kind.kind not in "buf" or 0 in shape:
        raise BadRequest(
            f"Pictures of {where} are {kind} {shape}; expected (n, H, W), (n, H, W, 3) or (n, 3, H, W) in uint8, "
            "uint16 or floats in [0, 1], each side at least 1 pixel."
        )
    if kind.kind == "f" and not (np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
        raise BadRequest(
            f"Pictures of {where} are {kind} from {images.min():g} to {images.max():g}, a range that is not known; "
            "scale them to [0, 1], or give uint8."
        )
    if kind != np.uint8:
        top = 1.0 if kind.kind in "bf" else float(np.iinfo(kind).max)
        images = np.stack([np.rint(255 * image.astype(np.float64) / top).astype(np.uint8) for image in images])
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    if tensor.dim() == 3:
        return tensor[:, None].expand(-1, 3, -1, -1).contiguous()
    return tensor if first else tensor.permute(0, 3, 1, 2).contiguous()


def _resized(images: Tensor, size: int | None) -> Tensor:
    if size is None or tuple(images.shape[2:]) == (size, size):
        return images
    from PIL import Image

    rows = [np.asarray(fitted(Image.fromarray(i.permute(1, 2, 0).numpy()), size)) for i in images]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous()
