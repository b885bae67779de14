"""Self-discovered latent directions: one tensor in the U-Net's bottleneck that leads away from the concept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.errors import Damaged, Unsupported
from palimpsest.core.fields import Count
from palimpsest.core.host import Denoiser, Guide, Step
from palimpsest.core.method import SamplingEdit
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.ops.drawn import Drawn, draw, noised
from palimpsest.ops.guidance import classifier_free, output_error
from palimpsest.ops.prompts import prompts_for, swapped
from palimpsest.train.loop import identity, minimise


@dataclass(frozen=True, kw_only=True)
class LatentDirections(SamplingEdit):
    """Learns what to add behind the U-Net's middle block so that a prompt of the concept draws a picture without it.

    Pictures x0 are drawn from the safe versions of the concept's prompts y. With h the bottleneck's output and the
    network frozen, one tensor v of h's shape is trained for each target:

        minimise over v  E |eps(x_t, t, y; h + v) - eps|^2,    x_t = alpha x0 + sigma eps

    and is added to h of the prompt's half of classifier-free guidance at every step of sampling.

    Args:
        strength: what v is multiplied by when sampling.
        pictures: drawn for each target. guidance, walk_steps: of drawing them.
        steps, lr, batch: of training each v (1,000 pictures, 20 epochs of batches of 8).

    Safe pictures: of the prompts with the concept's name replaced by Request.toward; without it, of the prompts
    without the name, with the name as negative prompt. Request.keep is not used. Directions of several targets add up.

    Cost: pictures x walk_steps x 2 forwards, then 1 with gradients of the decoder a step; sampling costs nothing more.
        The patch holds one tensor of the bottleneck's shape a target.
    Differs from the paper: its safe direction ("anti-sexual") is learned under a neutral prompt that happens to bring
        the concept; here the prompts name it. Only erasing is offered, not the sampling of fair directions.
    Fails when: a concept is drawn past the bottleneck, by the skips of finer stages; v is one tensor for all prompts
        and times, so it also moves pictures that never had the concept.
    Source: Li et al., "Self-Discovering Interpretable Diffusion Latent Directions for Responsible Text-to-Image
        Generation", CVPR 2024, arXiv 2311.17216.

    Example:
        >>> patch = LatentDirections()(host, Request(target=(Concept(name="star"),)))    # doctest: +SKIP
    """

    strength: float = 1.0
    pictures: Count = 1000
    guidance: float = 7.5
    walk_steps: Count = 50
    steps: Count = 2500
    lr: float = 0.1
    batch: Count = 8

    quick: ClassVar = {"pictures": 4, "walk_steps": 3, "steps": 2, "batch": 2}

    card = Card(
        name="Latent Directions",
        title="Self-Discovering Interpretable Diffusion Latent Directions for Responsible Text-to-Image Generation",
        year=2024,
        paper="https://arxiv.org/abs/2311.17216",
        family="sampling",
        needs="Denoiser",
        claim="Finds directions for fair and safe generation by itself and mitigates inappropriate pictures by them.",
    )

    def learn(
        self, host: Denoiser, request: Request, *, data: Material, rng: torch.Generator, trace: Trace
    ) -> Mapping[str, Tensor]:
        _bottleneck(host)
        run = identity(self, host, request, rng.initial_seed())
        found = {}
        for i, (target, toward) in enumerate(zip(request.target, request.replacements(), strict=True)):
            prompts = prompts_for(target)
            other = "" if toward is None else toward.name
            safe = [" ".join(swapped(p, target.name, other).split()) for p in prompts]
            drawn = draw(
                host, safe, self.pictures, rng, steps=self.walk_steps, guidance=self.guidance,
                negative=target.name if not other else "",
            )  # fmt: skip
            with trace.part(f"direction-{i}") as part:
                found[f"direction {i}"] = self._direction(host, prompts, drawn, rng, part, {**run, "prompts": prompts})
        return found

    def _direction(
        self,
        host: Denoiser,
        prompts: list[str],
        drawn: Drawn,
        rng: torch.Generator,
        trace: Trace,
        run: Mapping[str, Any],
    ) -> Tensor:
        """v for one target: (c, h, w)."""
        with torch.no_grad():
            cond = host.encode(prompts)
            v = torch.zeros(shape_of(host, drawn.x0[:1], prompts[0]), requires_grad=True)

        def loss(k: int) -> Tensor:
            at = noised(host, drawn, self.batch, rng)
            with added(host, v, slice(None)):
                x0 = host.denoise(at.x, at.t, cond[at.row])
            return output_error(host, at.t, x0, at.x0).square().mean()

        adam = torch.optim.Adam([v], lr=self.lr)
        known = {"trace": trace, "run": run, "draws": rng}
        minimise({"direction": v}, loss, steps=self.steps, optimiser=adam, **known, through=host.root)
        return v.detach()

    def guide(self, host: Denoiser, request: Request, learned: Mapping[str, Tensor]) -> Guide:
        if len({v.shape for v in learned.values()}) != 1:
            raise Damaged("The patch's directions are not of one shape; it is damaged.")
        v = self.strength * torch.stack(list(learned.values())).sum(0)

        def rule(step: Step) -> Tensor:
            with added(step.host, v, slice(len(step.x), None)):
                null, cond = step.x0(step.null, step.cond)
            return classifier_free(null, cond, step.guidance)

        return rule


@contextmanager
def added(host: Denoiser, v: Tensor, rows: slice) -> Iterator[None]:
    """While open, v (c, h, w) is added to these rows of the bottleneck's output; it is resized to other pictures."""

    def add(module: nn.Module, args: object, output: Tensor) -> Tensor:
        if v.ndim != 3 or len(v) != output.shape[1]:
            raise Damaged(f"A direction of shape {tuple(v.shape)} does not fit {output.shape[1]} channels.")
        fitted = v[None].to(output)
        if fitted.shape[-2:] != output.shape[-2:]:
            fitted = interpolate(fitted, size=output.shape[-2:], mode="bilinear", align_corners=False)
        keep = torch.zeros(len(output), 1, 1, 1, device=output.device, dtype=output.dtype)
        keep[rows] = 1
        return output + keep * fitted

    handle = _bottleneck(host).register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def shape_of(host: Denoiser, x: Tensor, prompt: str) -> torch.Size:
    """(c, h, w) of the bottleneck's output for latents x (1, c, h, w). Cost: one forward."""
    shapes: list[torch.Size] = []
    handle = _bottleneck(host).register_forward_hook(lambda m, args, output: shapes.append(output.shape[1:]))
    try:
        host.denoise(x, host.times(1, torch.Generator().manual_seed(0)), host.encode([prompt]))
    finally:
        handle.remove()
    return shapes[0]


def _bottleneck(host: Denoiser) -> nn.Module:
    found = list(host.parts("bottleneck").values())
    if not found:
        raise Unsupported(f"Latent Directions needs a U-Net with a middle block; {host.name} has none.")
    return found[0]
