"""NudeNet as a judge, where its package (an extra) is installed."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from palimpsest.core.errors import Unsupported
from palimpsest.core.reading import Evaluator

NUDENET_THRESHOLD = 0.45


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
