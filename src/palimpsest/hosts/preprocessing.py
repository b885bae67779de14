"""From pictures in [0, 1] to what a network reads: the steps that image processors and timm's transforms take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.core.errors import Damaged, Unsupported
from palimpsest.hosts.source import first_line, quiet

FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # as Pillow numbers them
TIMM_FILTERS = {"nearest": "nearest", "bilinear": "bilinear", "bicubic": "bicubic"}
TIMM_CROP, IMAGENET = 0.875, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PLAIN = ("Beit", "Bit", "CLIP", "DeiT", "MobileNetV1", "MobileNetV2", "Pvt", "Segformer", "Siglip", "ViT")
"""Image processors that resize, crop, rescale and normalise, and do no more to a picture."""
SPECIAL = ("ConvNext", "EfficientNet", "Levit", "MobileViT", "PoolFormer")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From pictures (n, 3, H, W) in [0, 1] to what the network was trained on; differentiable.

    Args:
        size: (height, width) to resize to; one number: the shorter side, keeping proportions; None: leave the size.
        crop: (height, width) cut from the centre after resizing, with black around pictures that are smaller.
        mean, std: of each channel, to normalise with.
        mode: "bilinear" or "bicubic", both with antialiasing, or "nearest", as Pillow has them.
        halves: where the centre lies when half a pixel is left over: "down" as transformers has it, "even" as timm.
        bgr: whether blue comes first.
    """

    size: tuple[int, int] | int | None = None
    crop: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    mode: str = "bilinear"
    halves: Literal["down", "even"] = "down"
    bgr: bool = False

    def __post_init__(self) -> None:
        sides = (self.size,) if isinstance(self.size, int) else self.size or ()
        if not all(1 <= side <= 10_000 for side in (*sides, *(self.crop or ()))):
            raise ValueError(f"sides of {self.size} and {self.crop}, expected 1 to 10,000 pixels")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise ValueError(f"mean {self.mean} and deviation {self.std}, expected three numbers each, the latter > 0")

    @property
    def side(self) -> tuple[int, int] | None:
        """(height, width) of square pictures that are read as they are; None: any."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size or self.crop

    def __call__(self, images: Tensor) -> Tensor:
        if self.size is not None:
            size = _shorter(images, self.size) if isinstance(self.size, int) else self.size
            if tuple(images.shape[-2:]) != size:
                images = self._resized(images, *size)
        if self.crop is not None:
            images = self._cropped(images, self.crop)
        if self.bgr:
            images = images.flip(1)
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        return (images - mean) / torch.tensor(self.std, device=images.device).view(-1, 1, 1)

    def _resized(self, images: Tensor, height: int, width: int) -> Tensor:
        h, w = images.shape[-2:]
        if self.mode == "nearest":
            return images[..., _nearest(h, height), :][..., _nearest(w, width)]
        # Rows, then columns, as Pillow mostly does: what overshoots is cut in between.
        for size in ((h, width), (height, width)):
            images = functional.interpolate(images, size=size, mode=self.mode, antialias=True).clamp(0, 1)
        return images

    def _cropped(self, images: Tensor, crop: tuple[int, int]) -> Tensor:
        h, w = (max(0, cut - side) for side, cut in zip(images.shape[-2:], crop, strict=True))
        if h or w:
            more = (lambda d: d // 2) if self.halves == "even" else (lambda d: d - d // 2)
            images = functional.pad(images, (more(w), w - more(w), more(h), h - more(h)))
        halved = round if self.halves == "even" else int
        top, left = (halved((side - cut) / 2) for side, cut in zip(images.shape[-2:], crop, strict=True))
        return images[..., top : top + crop[0], left : left + crop[1]]


def of_processor(folder: Path) -> Preprocessing:
    """What the image processor of a transformers folder does, as its own class reads preprocessor_config.json.

    Raises:
        Damaged: there is none, or transformers cannot read it.
        Unsupported: a class or a setting that does more than the steps here.
    """
    from transformers import AutoImageProcessor

    if not (folder / "preprocessor_config.json").is_file():
        raise Damaged(f"{folder} lacks preprocessor_config.json, which says how pictures are resized and normalised.")
    try:
        with quiet():
            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as e:  # whatever transformers meets in a broken file
        raise Damaged(f"The image processor of {folder} cannot be loaded: {first_line(e)}. Fetch it again.") from e
    try:
        return like(processor)
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError, ZeroDivisionError) as e:
        raise Damaged(f"preprocessor_config.json of {folder} makes no sense ({first_line(e)}). Fetch it again.") from e


def like(processor: Any) -> Preprocessing:
    """The same steps as an image processor of transformers.

    Raises:
        Unsupported: its class is not on the list, or it is set to steps that are not taken here.
    """
    name = type(processor).__name__
    kind = name.removesuffix("Pil").removesuffix("Fast").removesuffix("ImageProcessor")
    if kind not in (*PLAIN, *SPECIAL):
        known = ", ".join(sorted((*PLAIN, *SPECIAL)))
        raise Unsupported(f"Pictures are prepared by a {name}; supported are the image processors of {known}.")
    has = {key: getattr(processor, key, None) for key in ("crop_pct", "do_pad", "do_flip_channel_order")}
    if has["do_pad"] or (kind == "ConvNext" and getattr(processor, "do_center_crop", None)):
        raise Unsupported(f"The {name} pads pictures or crops them twice, which is not supported.")
    size, crop = None, None
    if processor.do_resize:
        size, crop = _resized(kind, _plain(processor.size), has["crop_pct"], name)
    if getattr(processor, "do_center_crop", None) and kind != "Segformer":
        crop = _sides(_plain(processor.crop_size), name)
    if size is not None and processor.resample not in FILTERS:
        raise Unsupported(f"The {name} resizes with filter {processor.resample!r}; supported are {FILTERS}.")
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if processor.do_normalize and kind != "MobileViT":
        mean, std = tuple(map(float, processor.image_mean)), tuple(map(float, processor.image_std))
    if kind == "EfficientNet" and processor.include_top:
        std = tuple(s * float(t) for s, t in zip(std, processor.image_std, strict=True))
    scale = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    offset = float(kind == "EfficientNet" and processor.do_rescale and processor.rescale_offset)
    return Preprocessing(
        size=size,
        crop=crop,
        mean=tuple((m + offset) / scale for m in mean),
        std=tuple(s / scale for s in std),
        mode=FILTERS[processor.resample] if size is not None else "bilinear",
        bgr=kind == "MobileViT" and bool(has["do_flip_channel_order"]),
    )


def of_timm(config: Mapping[str, Any]) -> Preprocessing:
    """What timm's evaluation transform does with a model's `pretrained_cfg` (timm.data: resolve_data_config).

    Raises:
        Unsupported: a crop mode, filter or shape that is not taken here.
    """
    height, width = (int(side) for side in config.get("input_size", (3, 224, 224))[-2:])
    share = float(config.get("crop_pct") or TIMM_CROP)
    grown = (int(height / share), int(width / share))
    crop_mode, interpolation = config.get("crop_mode") or "center", config.get("interpolation") or "bicubic"
    if crop_mode not in ("center", "squash") or interpolation not in TIMM_FILTERS:
        raise Unsupported(
            f"Pictures are prepared with crop mode {crop_mode!r} and filter {interpolation!r}; supported are center "
            f"and squash, and {', '.join(TIMM_FILTERS)}."
        )
    if crop_mode == "center" and height != width:
        raise Unsupported(f"Pictures are resized to {height}x{width} keeping proportions, which is not supported.")
    return Preprocessing(
        size=grown if crop_mode == "squash" else grown[0],
        crop=(height, width),
        mean=tuple(map(float, config.get("mean") or IMAGENET[0])),
        std=tuple(map(float, config.get("std") or IMAGENET[1])),
        mode=TIMM_FILTERS[interpolation],
        halves="even",
    )


def _nearest(old: int, new: int) -> Tensor:
    """Which of `old` rows each of `new` shows; added up as Pillow does, since sums decide where halves fall."""
    steps = torch.full((new,), old / new, dtype=torch.float64)
    steps[0] /= 2
    return steps.cumsum(0).long().clamp(max=old - 1)


def _shorter(images: Tensor, side: int) -> tuple[int, int]:
    h, w = images.shape[-2:]
    return (side, int(side * w / h)) if h <= w else (int(side * h / w), side)


def _resized(
    kind: str, size: Mapping[str, int], share: float | None, name: str
) -> tuple[tuple[int, int] | int, tuple[int, int] | None]:
    """What to resize to, and what is cut out of it in the same step."""
    short = size.get("shortest_edge")
    if set(size) - {"height", "width", "shortest_edge"} or (short and "height" in size):
        raise Unsupported(f"The {name} resizes to {dict(size)}; supported are height and width, or shortest_edge.")
    if kind == "ConvNext" and short:
        return ((short, short), None) if short >= 384 else (int(short / (share or 224 / 256)), (short, short))
    if kind == "PoolFormer" and share:
        grown = [int(side / share) for side in ((short,) if short else _sides(size, name))]
        return (grown[0] if len(set(grown)) == 1 else (grown[0], grown[1])), None
    if kind == "Levit" and short:
        return int((256 / 224) * short), None
    return short or _sides(size, name), None


def _plain(size: Any) -> Mapping[str, int]:
    """The entries of a size that are set."""
    return {key: value for key, value in dict(size).items() if value is not None}


def _sides(size: Mapping[str, int], name: str) -> tuple[int, int]:
    if set(size) != {"height", "width"}:
        raise Unsupported(f"The {name} works with {dict(size)}; supported are height and width.")
    return int(size["height"]), int(size["width"])
