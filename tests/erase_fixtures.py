"""What tests of erasers share: small random pipelines, what their networks predict, what training was given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hosts_fixtures import SEEDS, host_of, sd_pipeline
from palimpsest.core.concept import Concept, Request
from palimpsest.core.host import Step
from palimpsest.core.pictures import Pictures
from palimpsest.core.sampling import Sampling
from palimpsest.core.trace import Trace
from palimpsest.hosts.sd import SDHost
from palimpsest.ops.prompts import answered
from palimpsest.train.walks import KeptWalk


def small_sd(folder: Path, prediction: str = "epsilon") -> SDHost:
    torch.manual_seed(0)
    return SDHost(sd_pipeline(folder, prediction), name="small sd")


def pictures(n: int, **facts: Any) -> Pictures:
    """n random pictures of 16 pixels, with whatever is to be known of them."""
    images = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Pictures(images=images, names=tuple(f"picture {i}" for i in range(n)), **facts)


class Judge:
    """A classifier that answers as a test wants."""

    name, knows, device = "a judge", None, torch.device("cpu")

    def __init__(self, labels: tuple[str, ...], logits: Callable[[Tensor], Tensor]) -> None:
        self.labels, self.logits, self.root = labels, logits, nn.Module()

    def parts(self, role: str) -> dict[str, nn.Module]:
        return {}

    def fingerprint(self) -> str:
        return "a judge"

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.embed(images), self.logits(images)


def layers(host: Any) -> dict[str, Tensor]:
    """Weights of the layers that read text, by tensor name."""
    found = {**host.parts("cross_key"), **host.parts("cross_value")}
    return {f"{name}.weight": layer.weight.detach().double() for name, layer in found.items()}


def eps(host: Any, x: Tensor, t: Tensor, states: Tensor) -> Tensor:
    """What the pipeline's own network predicts under these text states: noise."""
    with torch.no_grad():
        return host.pipeline.unet(x, t, encoder_hidden_states=states).sample


def predicted(x: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
    """What the network of `host_of("sd")` predicts: noise."""
    host = host_of("sd")
    return host.pipeline.unet(x, t, encoder_hidden_states=host.encode(prompts).states).sample


def watch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The points that training gets: x, t and which prompt."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    points = KeptWalk.points

    def watched(self: KeptWalk, step: Any) -> Any:
        at = points(self, step)
        seen.append((at.x, at.t, at.row))
        return at

    monkeypatch.setattr(KeptWalk, "points", watched)
    return seen


def first_loss(trace: Trace) -> float:
    return next(value for at, name, value in trace.log if name == "loss" and at == 0)


def _prompts_of(host: Any, concept: Concept) -> list[str]:
    return [p for p, _ in answered(Request(target=(concept,)))]


def first_step(host: Any, prompts: Sequence[str] = ("a red star", "house"), steps: int = 10) -> Step:
    return next(host.walk(prompts, SEEDS[: len(prompts)], Sampling(steps=steps, guidance=3.0)))


def projector(vectors: Tensor) -> Tensor:
    e = vectors.T.double()
    return e @ torch.linalg.pinv(e.T @ e) @ e.T


def end(host: Any, text: str) -> Tensor:
    """The end token's state."""
    cond = host.encode([text])
    return cond.states[0, int(cond.lengths[0]) - 1]
