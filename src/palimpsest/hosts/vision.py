"""Classifiers and encoders: any torch module with a head, its labels and its preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.hosts.weights import Weights

BICUBIC = 3  # as preprocessor configurations number it


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From pictures (n, 3, H, W) in [0, 1] to what the network was trained on.

    Args:
        size: (height, width) to resize to; one number: the shorter side, keeping proportions; None: leave the size.
        crop: (height, width) cut from the centre after resizing; None: nothing.
        mean, std: of each channel, to normalise with.
        mode: "bilinear" or "bicubic", with antialiasing.
    """

    size: tuple[int, int] | int | None = None
    crop: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    mode: str = "bilinear"

    def __call__(self, images: Tensor) -> Tensor:
        if self.size is not None:
            size = self._target(images) if isinstance(self.size, int) else self.size
            if tuple(images.shape[-2:]) != size:
                images = functional.interpolate(images, size=size, mode=self.mode, antialias=True).clamp(0, 1)
        if self.crop is not None:
            top, left = ((side - cut) // 2 for side, cut in zip(images.shape[-2:], self.crop, strict=True))
            images = images[..., top : top + self.crop[0], left : left + self.crop[1]]
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        return (images - mean) / torch.tensor(self.std, device=images.device).view(-1, 1, 1)

    def _target(self, images: Tensor) -> tuple[int, int]:
        assert isinstance(self.size, int)
        h, w = images.shape[-2:]
        return (self.size, self.size * w // h) if h <= w else (self.size * h // w, self.size)


class ClassifierHost:
    """A torch image classifier as a Classifier: `logits`, and as `embed` what its head reads.

    Args:
        model: maps preprocessed pictures to logits (a tensor or an output with `.logits`).
        name: as messages and receipts call it.
        labels: one for each logit.
        head: name of the module that turns features into logits.
        backbone: name of the module that makes the features; "": the whole model.
        preprocessing: what the network expects.
        unit: whether `embed` is scaled to unit norm.
        folder: where it was loaded from.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        labels: Sequence[str],
        head: str,
        backbone: str = "",
        preprocessing: Preprocessing | None = None,
        unit: bool = False,
        folder: Path | None = None,
    ) -> None:
        self.root, self.name, self.folder, self.labels = model, name, folder, tuple(labels)
        self.preprocessing, self.unit = preprocessing or Preprocessing(), unit
        self._parts = {"head": head, "backbone": backbone}
        modules = dict(model.named_modules())
        for role, part in self._parts.items():
            if part not in modules:
                known = ", ".join(child for child, _ in model.named_children())
                raise BadRequest(f"{name} has no module {part!r} to be its {role}; its children are {known}.")
        model.eval().requires_grad_(False)
        self._weights = Weights(model)

    @property
    def device(self) -> torch.device:
        return next(self.root.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.root.parameters()).dtype

    def parts(self, role: str) -> dict[str, nn.Module]:
        """ "head" and "backbone"; {} for all other roles."""
        return {self._parts[role]: self.root.get_submodule(self._parts[role])} if role in self._parts else {}

    def fingerprint(self) -> str:
        """sha256 of all tensors; hashed again only when their quick state has changed."""
        return self._weights.fingerprint()

    def logits(self, images: Tensor) -> Tensor:
        """(n, len(labels)) float32 of images (n, 3, H, W) in [0, 1]; differentiable."""
        out: Any = self.root(self.preprocessing(images.to(self.device)).to(self.dtype))
        return (out if isinstance(out, Tensor) else out.logits).float()

    def embed(self, images: Tensor) -> Tensor:
        """(n, d) float32 features that the head reads; differentiable. Cost: one forward, head included."""
        caught: list[Tensor] = []
        head = self.root.get_submodule(self._parts["head"])
        handle = head.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
        try:
            self.logits(images)
        finally:
            handle.remove()
        features = caught[0].flatten(1).float()
        return functional.normalize(features, dim=1) if self.unit else features


def from_folder(folder: Path, *, name: str, device: torch.device, dtype: torch.dtype) -> ClassifierHost:
    """A transformers image classifier from its folder (config.json, safetensors, preprocessor_config.json)."""
    import json

    from transformers import AutoModelForImageClassification

    settings = folder / "preprocessor_config.json"
    if not settings.is_file():
        raise Damaged(f"{folder} lacks preprocessor_config.json, which says how pictures are resized and normalised.")
    try:
        model: Any = AutoModelForImageClassification.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
        preprocessing = preprocessing_from(json.loads(settings.read_text(encoding="utf-8")))
    except Exception as e:  # whatever transformers or safetensors meet in a broken file
        raise Damaged(f"{folder} cannot be loaded as an image classifier: {e}. Fetch it again.") from e
    labels = [model.config.id2label[i] for i in sorted(model.config.id2label)]
    return ClassifierHost(
        model.to(device, dtype),
        name=name,
        labels=labels,
        head="classifier",
        backbone=model.base_model_prefix,
        preprocessing=preprocessing,
        folder=folder,
    )


def preprocessing_from(config: dict[str, Any]) -> Preprocessing:
    """From the content of a preprocessor_config.json."""
    size = config.get("size") if config.get("do_resize", True) else None
    crop = config.get("crop_size") if config.get("do_center_crop", False) else None
    normalised = config.get("do_normalize", True) and "image_mean" in config
    return Preprocessing(
        size=size["shortest_edge"] if isinstance(size, dict) and "shortest_edge" in size else _sides(size),
        crop=_sides(crop),
        mean=tuple(config["image_mean"]) if normalised else Preprocessing.mean,
        std=tuple(config["image_std"]) if normalised else Preprocessing.std,
        mode="bicubic" if config.get("resample") == BICUBIC else "bilinear",
    )


def _sides(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    return (size["height"], size["width"]) if isinstance(size, dict) else (size, size)
