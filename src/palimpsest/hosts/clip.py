"""CLIP: pictures and texts in one space."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from palimpsest.core.errors import Damaged
from palimpsest.hosts.encoder import EncoderHost
from palimpsest.hosts.preprocessing import of_processor
from palimpsest.hosts.source import Family, Source, first_line
from palimpsest.hosts.weights import loaded


class CLIPHost(EncoderHost):
    """A CLIPModel of transformers as a Matcher; vectors have unit norm.

    Args:
        tokenizer: of its folder.
    """

    def __init__(self, model: Any, tokenizer: Any, **common: Any) -> None:
        super().__init__(model, **common)
        self.model, self.tokenizer = model, tokenizer
        self.scale = float(model.logit_scale.exp())

    def embed(self, images: Tensor) -> Tensor:
        """(n, d) float32, unit norm, of images (n, 3, H, W) in [0, 1]; differentiable."""
        return functional.normalize(super().embed(images), dim=1)

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """(n, d) float32, unit norm, of texts."""
        tokens = self.tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt").to(self.device)
        states = self.model.text_model(**tokens).pooler_output
        return functional.normalize(self.model.text_projection(states).float(), dim=1)

    def _run(self, pixels: Tensor) -> Tensor:
        return self.model.visual_projection(self.model.vision_model(pixels).pooler_output)


def _detect(files: Collection[str], config: Mapping[str, Any], keys: Collection[str]) -> bool:
    return list(config.get("architectures") or ()) == ["CLIPModel"]


def _load(source: Source) -> CLIPHost:
    from transformers import CLIPModel, CLIPTokenizer

    folder = source.path
    preprocessing = of_processor(folder)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as e:  # whatever transformers meets in a broken file
        raise Damaged(f"The tokenizer of {folder} cannot be loaded: {first_line(e)}. Fetch it again.") from e
    model = loaded(CLIPModel, folder, source.dtype)
    return CLIPHost(model.to(source.device), tokenizer, name=source.name, preprocessing=preprocessing, folder=folder)


FAMILY = Family(_detect, _load)
