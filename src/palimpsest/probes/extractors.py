"""Evaluators that judge nothing: networks that turn pictures into features, and CLIP models that match texts too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.core.host import Encoder, Matcher, capabilities
from palimpsest.core.reading import Evaluator
from palimpsest.worlds.concepts import WORLDS

FEATURES = "features"  # before the colon of an extractor's source


class Extractor:
    """A network as an evaluator without classes: distances are measured in its features.

    Args:
        evaluator: who it is; its classes and threshold are left aside.
        embed: (n, d) of images (n, 3, H, W) in [0, 1].
        host: where it also matches texts, pictures are held against their prompts.
        source: what loads it again.
    """

    def __init__(
        self, evaluator: Evaluator, embed: Callable[[Tensor], Tensor], *, host: Any = None, source: str = ""
    ) -> None:
        self.host, self.source, self._embed = host, source, embed
        self.evaluator = replace(evaluator, name=f"features of {evaluator.name}", classes=(), threshold=None)

    def read(self, images: Tensor) -> Tensor:
        """(n, 0): it knows no classes."""
        return torch.zeros(len(images), 0)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(n, d) of images (n, 3, H, W) in [0, 1]."""
        return self._embed(images).float()


def extractor(folder: str) -> Extractor:
    """Loads a network of one's own that turns pictures into features, from local files.

    Args:
        folder: of a CLIP model, of a vision model or an image classifier; or "tiny/glyphs", "tiny/faces" for the
            features of a drawn world's oracle.

    Raises:
        BadRequest: nothing lies there.
        Unsupported: what lies there turns no pictures into features.
    """
    from palimpsest.hosts.load import load
    from palimpsest.probes.evaluators import judge

    source = f"{FEATURES}:{folder}"
    if folder.startswith("tiny/") and folder[5:] in WORLDS:
        oracle = judge(folder)
        return Extractor(oracle.evaluator, oracle.features, source=source)
    if not folder.startswith("tiny/") and not Path(folder).expanduser().exists():
        raise BadRequest(
            f"There is no model at {folder!r} to take features from: give the folder of a CLIP model, of a vision "
            "model or of an image classifier (with config.json and safetensors weights)."
        )
    host = load(folder)
    if not isinstance(host, Encoder):
        able = ", ".join(capabilities(host)) or "no more"
        raise Unsupported(
            f"{folder} turns no pictures into features (it is: {able}). Give a CLIP model, a vision model or an image "
            "classifier."
        )
    print_ = host.fingerprint()
    stated = Evaluator(
        name=Path(host.name).name, version=print_[:12], sha256=print_, licence="see the model's own card"
    )
    return Extractor(stated, host.embed, host=host, source=source)


def matches(by: Any, features: Tensor, prompts: Sequence[str]) -> Tensor | None:
    """(n,) cosines of pictures with the prompts that they were drawn of; None where a judge reads no texts.

    Args:
        by: a judge or an extractor. features: (n, d), as it gave them.
    """
    host = getattr(by, "host", None)
    if not isinstance(host, Matcher):
        return None
    once = list(dict.fromkeys(prompts))
    with torch.no_grad():
        texts = torch.cat([host.texts(once[i : i + 64]).float().cpu() for i in range(0, len(once), 64)])
    place = {prompt: i for i, prompt in enumerate(once)}
    return torch.nn.functional.cosine_similarity(features, texts[[place[p] for p in prompts]])
