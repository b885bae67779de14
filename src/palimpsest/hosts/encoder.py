"""Networks that turn pictures into vectors: any torch module, and the vision models of transformers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.core.errors import Unsupported
from palimpsest.core.fingerprint import precision
from palimpsest.core.host import Vocabulary
from palimpsest.hosts.preprocessing import Preprocessing, of_processor
from palimpsest.hosts.source import Family, Source, first_line, public
from palimpsest.hosts.weights import Weights, loaded

MODELS = (
    *("BeitModel", "CLIPVisionModel", "CLIPVisionModelWithProjection", "ConvNextModel", "DeiTModel", "Dinov2Model"),
    *("ResNetModel", "SiglipVisionModel", "SwinModel", "ViTModel"),
)


class EncoderHost:
    """A network from pictures to vectors as an Encoder.

    Args:
        model: maps preprocessed pictures to vectors (n, d), or to an output of transformers that holds them.
        name: as messages and receipts call it.
        preprocessing: what the network expects.
        folder: where it was loaded from.
    """

    knows: Vocabulary | None = None

    def __init__(
        self, model: nn.Module, *, name: str, preprocessing: Preprocessing | None = None, folder: Path | None = None
    ) -> None:
        self.root, self.name, self.folder = model, name, folder
        self.preprocessing = preprocessing or Preprocessing()
        model.eval().requires_grad_(False)
        self.weights = Weights(model)

    @property
    def device(self) -> torch.device:
        return next(self.root.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.root.parameters()).dtype

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) at which square pictures reach the network without being resized; None: any."""
        return self.preprocessing.side

    def parts(self, role: str) -> dict[str, nn.Module]:
        """ "backbone": the whole model; {} for all other roles."""
        return {"": self.root} if role == "backbone" else {}

    def fingerprint(self) -> str:
        """sha256 of all tensors; hashed again only when their quick state has changed."""
        return self.weights.fingerprint()

    def settings(self) -> dict[str, Any]:
        """What decides the answers beside tensors, as plain JSON."""
        config = getattr(self.root, "config", None)
        network = public(config) if hasattr(config, "to_diff_dict") else {}
        return {"dtype": precision(self.root), "preprocessing": asdict(self.preprocessing), "network": network}

    def embed(self, images: Tensor) -> Tensor:
        """(n, d) float32 of images (n, 3, H, W) in [0, 1]; differentiable.

        Of transformers' outputs: the projected or pooled vector, else the first token's.
        """
        out = self._out(images)
        if not isinstance(out, Tensor):
            pooled = getattr(out, "image_embeds", None)
            pooled = getattr(out, "pooler_output", None) if pooled is None else pooled
            out = out.last_hidden_state[:, 0] if pooled is None else pooled
        return out.flatten(1).float()

    def _run(self, pixels: Tensor) -> Any:
        return self.root(pixels)

    def _out(self, images: Tensor) -> Any:
        try:
            return self._run(self.preprocessing(images.to(self.device)).to(self.dtype))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as e:
            height, width = images.shape[-2:]
            wanted = "larger ones" if self.size is None else f"{self.size[0]}x{self.size[1]}"
            raise Unsupported(
                f"{self.name} cannot read pictures of {height}x{width} pixels ({first_line(e)}); give it {wanted}."
            ) from e


def _detect(files: Collection[str], config: Mapping[str, Any], keys: Collection[str]) -> bool:
    return any(name in MODELS for name in config.get("architectures") or ())


def _load(source: Source) -> EncoderHost:
    import transformers

    cls = getattr(transformers, next(n for n in source.config["architectures"] if n in MODELS))
    model = loaded(cls, source.path, source.dtype)
    return EncoderHost(
        model.to(source.device), name=source.name, preprocessing=of_processor(source.path), folder=source.path
    )


FAMILY = Family(_detect, _load)
