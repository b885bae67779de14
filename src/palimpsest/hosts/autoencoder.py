"""Autoencoders of diffusers by themselves: from pictures to latents and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.core.fingerprint import precision
from palimpsest.core.host import Vocabulary
from palimpsest.hosts.pipelines import AUTOENCODER
from palimpsest.hosts.source import Family, Source, public
from palimpsest.hosts.weights import Weights, loaded


class AutoencoderHost:
    """A network of diffusers as an Autoencoder; latents are as it makes them, without the scaling of a pipeline."""

    knows: Vocabulary | None = None

    def __init__(self, model: Any, *, name: str, folder: Path | None = None) -> None:
        self.root, self.name, self.folder = model, name, folder
        model.eval().requires_grad_(False)
        self.weights = Weights(model)

    @property
    def device(self) -> torch.device:
        return next(self.root.parameters()).device

    def parts(self, role: str) -> dict[str, nn.Module]:
        """ "autoencoder": the whole model; {} for all other roles."""
        return {"": self.root} if role == "autoencoder" else {}

    def fingerprint(self) -> str:
        """sha256 of all tensors; hashed again only when their quick state has changed."""
        return self.weights.fingerprint()

    def settings(self) -> dict[str, Any]:
        """What decides latents and pictures beside tensors, as plain JSON."""
        return {"dtype": precision(self.root), "network": public(self.root.config)}

    def latents(self, images: Tensor) -> Tensor:
        """(n, c, h, w) float32 posterior means of images (n, 3, H, W) in [0, 1]; differentiable."""
        encoded = self.root.encode((images * 2 - 1).to(self.root.device, self.root.dtype))
        return (encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents).float()

    def pixels(self, x: Tensor) -> Tensor:
        """Images (n, 3, H, W), float32 in [0, 1], of latents; differentiable where it does not clip."""
        decoded = self.root.decode(x.to(self.root.device, self.root.dtype), return_dict=False)[0]
        return (decoded.float() / 2 + 0.5).clamp(0, 1)


def _detect(files: Collection[str], config: Mapping[str, Any], keys: Collection[str]) -> bool:
    return config.get("_class_name") in AUTOENCODER


def _load(source: Source) -> AutoencoderHost:
    import diffusers

    model = loaded(getattr(diffusers, source.config["_class_name"]), source.path, source.dtype)
    return AutoencoderHost(model.to(source.device), name=source.name, folder=source.path)


FAMILY = Family(_detect, _load)
