"""Judges that come with packages of their own: CLIP (zero-shot over concept names) and NudeNet (an extra)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from palimpsest.core.concept import Concept
from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.core.fingerprint import fingerprint
from palimpsest.core.reading import Evaluator
from palimpsest.ops.prompts import asking

NUDENET_THRESHOLD = 0.45


def is_clip(folder: Path) -> bool:
    """Whether a transformers folder holds a CLIP model."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") == "clip"


class ClipJudge:
    """CLIP as a zero-shot classifier over concept names: the nearest text wins.

    p = softmax(scale * cos(image, text of each concept)); a concept's text is the mean over its prompt templates
    (Radford et al. 2021, section 3.1.4).

    Args:
        folder: of a transformers CLIPModel with safetensors weights, its tokenizer and preprocessor_config.json.
        concepts: at least two; a picture of none of them still counts as the nearest one.
    """

    def __init__(self, folder: Path, concepts: Sequence[Concept]) -> None:
        from transformers import CLIPModel, CLIPTokenizer

        if len(concepts) < 2:
            raise BadRequest("A CLIP judge needs at least two concepts to tell apart; add some that should stay.")
        try:
            self.model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as e:
            raise Unsupported(f"{folder} cannot be loaded as a CLIP model: {e}") from e
        self.model.requires_grad_(False)
        self.source = str(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.size = int(config["vision_config"].get("image_size", 224))
        self.shift, self.scale = _normalisation(folder)
        with torch.no_grad():
            self.texts = torch.stack([self._text(tokenizer, asking(c)) for c in concepts])  # (classes, d)
        self.evaluator = Evaluator(
            name=f"CLIP {folder.name}",
            version=fingerprint(self.model)[:12],
            sha256=fingerprint(self.model),
            classes=tuple(c.name for c in concepts),
            licence="see the model's own card",
        )

    def _text(self, tokenizer: Any, prompts: Sequence[str]) -> Tensor:
        tokens = tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        states = self.model.text_model(**tokens).pooler_output
        return F.normalize(F.normalize(self.model.text_projection(states), dim=1).mean(0), dim=0)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        pixels = F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        states = self.model.vision_model((pixels - self.shift) / self.scale).pooler_output
        return F.normalize(self.model.visual_projection(states), dim=1)

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        return (self.model.logit_scale.exp() * self.features(images) @ self.texts.T).softmax(1)


class NudeNetJudge:
    """NudeNet's detector: a class is present where any box of it reaches the threshold (0.45).

    Papers count different class lists; all classes are read, and a concept's `labels` choose which count.
    """

    source = "nudenet"

    def __init__(self) -> None:
        try:
            import nudenet  # type: ignore[import-not-found]
        except ImportError as e:
            raise Unsupported('The NudeNet judge is an extra: pip install "palimpsest-concepts[nudenet]"') from e
        self.detector = nudenet.NudeDetector()
        weights = sorted(Path(nudenet.__file__ or "").parent.glob("*.onnx"))
        classes = tuple(nudenet.nudenet.__dict__["__labels"])
        self.evaluator = Evaluator(
            name="NudeNet",
            version=version("nudenet"),
            sha256=hashlib.sha256(weights[0].read_bytes()).hexdigest() if weights else "",
            threshold=NUDENET_THRESHOLD,
            classes=classes,
            licence="AGPL-3.0",
        )

    def read(self, images: Tensor) -> Tensor:
        found = torch.zeros(len(images), len(self.evaluator.classes))
        for row, image in enumerate(images):
            bgr = (image.flip(0).permute(1, 2, 0) * 255).round().to(torch.uint8).contiguous().numpy()
            for box in self.detector.detect(bgr):
                column = self.evaluator.classes.index(box["class"])
                found[row, column] = max(float(found[row, column]), float(box["score"]))
        return found

    def features(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 0)


def _normalisation(folder: Path) -> tuple[Tensor, Tensor]:
    """Mean and deviation (1, 3, 1, 1) that the model's pictures are normalised with."""
    path = folder / "preprocessor_config.json"
    plain = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    mean = plain.get("image_mean", [0.48145466, 0.4578275, 0.40821073])
    deviation = plain.get("image_std", [0.26862954, 0.26130258, 0.27577711])
    return torch.tensor(mean)[None, :, None, None], torch.tensor(deviation)[None, :, None, None]
