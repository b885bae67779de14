"""A stand-in model that draws Glyphs and can really be edited, and a judge that reads its pictures without error."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.core.concept import Request
from palimpsest.core.delta import Dense, LowRank
from palimpsest.core.fingerprint import fingerprint
from palimpsest.core.host import Cond
from palimpsest.core.patch import Patch
from palimpsest.core.reading import Evaluator
from palimpsest.core.sampling import Sampling
from palimpsest.probes.drawn import Drawn, collect
from palimpsest.probes.plan import Plan, plan
from palimpsest.receipt import Receipt, audit
from palimpsest.receipt.subjects.generator import Generator
from palimpsest.worlds.concepts import Words, concept
from palimpsest.worlds.glyphs import GLYPHS

KEYS = ("subject", "colour", "style", "background")


class Scribe:
    """Draws what a prompt asks for. Where `weight[0, 0]` is over 0.5, it draws a circle for every star; `weight[1, 1]`
    is the share of moons drawn as rings; where `weight[2, 2]` is over 0.5 it draws noise for everything.

    The first pixels of a picture hold its labels, so that `Reader` reads them exactly.
    """

    def __init__(self, name: str = "scribe") -> None:
        self.name = name
        self.root = nn.Sequential()
        self.root.add_module("unet", nn.Linear(8, 8, bias=False))
        nn.init.zeros_(self.root.get_parameter("unet.weight"))
        self.folder = None
        self.knows: Words | None = Words(GLYPHS)
        self.device = torch.device("cpu")
        self.defaults = Sampling()
        self.drawn = 0
        self.set: dict[str, Any] = {"scheduler": {"beta_end": 0.012, "clip": False}, "labels": ["star", "moon"]}

    def settings(self) -> dict[str, Any]:
        return self.set

    @property
    def weight(self) -> Tensor:
        return self.root.get_parameter("unet.weight").detach()

    def parts(self, role: str) -> dict[str, nn.Module]:
        return {"unet": self.root.get_submodule("unet")} if role == "denoiser" else {}

    def fingerprint(self) -> str:
        return fingerprint(self.root)

    def tokens(self, prompts: Sequence[str]) -> Cond:
        """Two states a prompt: a random direction for each last word."""
        states = torch.stack([_direction(p.split()[-1] if p else "") for p in prompts])
        return Cond(states=states[:, None].repeat(1, 3, 1), lengths=torch.full((len(prompts),), 3))

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        how: Sampling = Sampling(),
        *,
        batch: int = 16,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        self.drawn += len(prompts)
        images = []
        for done, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            images.append(self._draw(prompt, seed))
            if progress is not None:
                progress(done + 1, len(prompts))
        self.root.get_submodule("unet")(torch.zeros(len(prompts), 8, dtype=self.weight.dtype))
        return torch.cat(images)

    def _draw(self, prompt: str, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        words = GLYPHS.read(prompt)
        labels = {k: torch.tensor([GLYPHS.vocabulary[k].index(words[k])]) for k in KEYS if k in words}
        labels.setdefault("subject", torch.randint(0, 20, (1,), generator=generator))
        chance = float(torch.rand((), generator=generator))
        index = GLYPHS.vocabulary["subject"].index
        if float(self.weight[0, 0]) > 0.5 and int(labels["subject"]) == index("star"):
            labels["subject"] = torch.tensor([index("circle")])
        if chance < float(self.weight[1, 1]) and int(labels["subject"]) == index("moon"):
            labels["subject"] = torch.tensor([index("ring")])
        drawn = GLYPHS.draw(labels, generator=generator)
        image = drawn.images
        if float(self.weight[2, 2]) > 0.5:
            image = torch.rand(image.shape, generator=generator)
        for x, key in enumerate(KEYS):
            image[0, :, 0, x] = float(drawn.labels[key]) / 255
        return image


class Reader:
    """Reads the labels in the first pixels; features are the colours of a small copy."""

    source = ""

    def __init__(self) -> None:
        classes = tuple(f"{k}:{w}" for k in KEYS for w in GLYPHS.vocabulary[k])
        self.evaluator = Evaluator(name="reader", version="1", sha256="ab" * 32, threshold=0.5, classes=classes)
        self.read_pictures = 0

    def read(self, images: Tensor) -> Tensor:
        self.read_pictures += len(images)
        heads = []
        for x, key in enumerate(KEYS):
            index = (images[:, 0, 0, x] * 255).round().long()
            heads.append(torch.nn.functional.one_hot(index, 256)[:, : len(GLYPHS.vocabulary[key])].float())
        return torch.cat(heads, 1)

    def features(self, images: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(images, (4, 4), mode="area").flatten(1) * 4


def patch(host: Scribe, row: int = 0, amount: float = 1.0) -> Patch:
    """A real low-rank patch that changes one entry of the stand-in's weight."""
    up, down = torch.zeros(8, 1), torch.zeros(1, 8)
    up[row, 0], down[0, row] = amount, 1.0
    provenance: dict[str, Any] = {"method": "erase/test", "name": "TEST", "parameters": {"row": row}, "seed": 0}
    return Patch(
        base=host.fingerprint(),
        deltas={"unet.weight": LowRank(up=up, down=down)},
        provenance={**provenance, "seconds": 1.5, "forwards": {"denoiser": 640}, "peak_bytes": 10_000_000},
    )


def request(*words: str, keep: Sequence[str] = ()) -> Request:
    return Request(
        target=tuple(concept(GLYPHS, w) for w in words or ("star",)), keep=tuple(concept(GLYPHS, w) for w in keep)
    )


def small_plan(host: Scribe, prompts: int = 6, seeds: int = 2, **choices: Any) -> Plan:
    few = {"neighbours": 2, "unrelated": 3, **choices}
    return plan(host, request("star", keep=["moon"]), prompts_per_concept=prompts, seeds=seeds, **few)


def _direction(word: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
    return torch.randn(16, generator=torch.Generator().manual_seed(seed))


@lru_cache(maxsize=1)
def erased() -> Drawn:
    """Star erased, half of the moons turned to rings: collected once for all tests of a file."""
    host = Scribe()
    return collect(host, damaging(host), small_plan(host), [Reader()])


def damaging(host: Scribe) -> Patch:
    """Stars become circles and half of the moons rings."""
    change = torch.zeros(8, 8)
    change[0, 0], change[1, 1] = 1.0, 0.5
    return replace(patch(host), deltas={"unet.weight": Dense(value=change)})


COMMAND = "palimpsest erase star --model tiny/scribe"


def receipt(folder: Path, command: str = COMMAND, **choices: Any) -> Receipt:
    """A small finished receipt in a folder, made with a command line of its own; choices are the subject's."""
    host = Scribe()
    return audit(
        host,
        damaging(host),
        request("star", keep=["moon"]),
        subject=Generator(plan=small_plan(host), judges=[Reader()], **choices),
        out=folder,
        command=command,
    )
