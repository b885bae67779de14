"""The base of systems that edit pictures through a diffusion model: into noise and back, asking for something else."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from palimpsest.core.concept import Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.fields import Count, NonNegative, Part
from palimpsest.core.host import Cond, Denoiser, Guide, Step
from palimpsest.core.images import Edited, ImageEdit
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Material, Pictures
from palimpsest.core.sampling import Sampling
from palimpsest.core.trace import Trace
from palimpsest.ops.inversion import Level, denoised, down, guided, inverted, levels
from palimpsest.ops.masks import resized, where_changed
from palimpsest.ops.regions import on_latents

ASKED, AVOIDED = "asked", "avoided"
"""Columns of the sources: what each picture shall show, and what it shall not (a negative prompt)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """What an inversion works on.

    Args:
        host: the model. levels: of noise, noisiest first, the clean one last.
        x0: (n, c, h, w) latents of the sources. said, asked, null: their prompts, encoded.
        steps, size: of the whole schedule, and the side of the pictures.
        guidance: the scale that the edit is guided with.
        prompts: what was said and asked, as text.
        rngs: one for each picture. data: what else the system was given.
    """

    host: Denoiser
    levels: Sequence[Level]
    x0: Tensor
    said: Cond
    asked: Cond
    null: Cond
    steps: int
    size: int
    guidance: float
    prompts: tuple[tuple[str, str], ...]
    rngs: Sequence[Generator]
    data: Material


@dataclass(frozen=True, kw_only=True, eq=False)
class Inverted:
    """Where sources are in noise.

    Args:
        path: x of the sources at each level, the clean latents last; what is rebuilt starts at the first.
        start: x (n, c, h, w) that the edit starts from; None: where what is rebuilt does.
        noises: what leads down from each level (`inversion.down`); None: nothing, the way is deterministic.
        nulls: the unconditional partner at each noisy level, where a system learns it; None: the scene's.
        region: (n, 1, h, w) on the latents' grid, where the system found that it must act; None: everywhere.
        kept: whatever else its steps read.
    """

    path: Sequence[Tensor]
    start: Tensor | None = None
    noises: Sequence[Tensor] | None = None
    nulls: Sequence[Cond] | None = None
    region: Tensor | None = None
    kept: Any = None


@dataclass(frozen=True, kw_only=True, eq=False)
class EditStep:
    """One step of an edit on its way down.

    Args:
        index: of the step, from 0; total: how many there are. here, there: the levels before and after it.
        x: (n, c, h, w) of the edit. source: x of the sources at the same level.
        said, asked, null: encoded prompts. While rebuilding, `asked` is `said`.
        scene, found: all that is known.
    """

    index: int
    total: int
    here: Level
    there: Level
    x: Tensor
    source: Tensor
    said: Cond
    asked: Cond
    null: Cond
    scene: Scene
    found: Inverted

    def x0(self, *conds: Cond) -> tuple[Tensor, ...]:
        """The clean latents predicted of the edit under each condition, in one batched forward."""
        x = self.x.repeat(len(conds), 1, 1, 1)
        return denoised(self.scene.host, x, self.here, Cond.cat(conds)).chunk(len(conds))

    def guided(self, scale: float | None = None) -> Tensor:
        """Classifier-free guidance under what is asked, at the scene's scale where none is given."""
        scale = self.scene.guidance if scale is None else scale
        return guided(self.scene.host, self.x, self.here, self.asked, self.null, scale)


@dataclass(frozen=True, kw_only=True)
class DiffusionEdit(ImageEdit):
    """Inverts pictures into the model's noise and samples them back under another prompt.

    A leaf says how pictures come into noise (`invert`) and what a step predicts (`step`). The way back is walked twice
    under the same noises: as asked, and with nothing asked (`Edited.rebuilt`), which shows what the way alone does.
    Sources' captions are what is said, their column "asked" what is asked for; where that is missing, the request's
    targets are added to what is said.

    Args:
        steps: of the whole schedule; None: the model's own default.
        guidance: the scale of guidance under what is asked; None: the model's own default.
        depth: the share of the schedule that is walked: how far into noise a picture goes.
        finish: what becomes of the edit. difference: where edit and rebuilt picture differ, the source changes by
            their difference; elsewhere it stays. mask: the edit inside the source's mask. whole: the model's picture.
    """

    patchable = True

    steps: Count | None = None
    guidance: NonNegative | None = None
    depth: Part = 0.7
    finish: Literal["difference", "mask", "whole"] = "difference"

    def invert(self, scene: Scene) -> Inverted:
        """Pictures in noise; here by DDIM under what is said, without guidance."""
        return Inverted(path=inverted(scene.host, scene.x0, scene.said, scene.levels))

    def step(self, at: EditStep) -> Tensor:
        """x0 (n, c, h, w) that a step goes towards; here by classifier-free guidance under what is asked."""
        return at.guided()

    def run(
        self,
        host: Any,
        sources: Pictures,
        request: Request,
        *,
        data: Material,
        rngs: Sequence[Generator],
        trace: Trace,
    ) -> Edited:
        if self.finish == "mask" and sources.masks is None:
            raise BadRequest("finish is mask, and the pictures have no masks; give masks, or another finish.")
        with torch.no_grad():
            scene = self._scene(host, sources, request, data, rngs)
            found = self.invert(scene)
            masks = None if sources.masks is None else on_latents(sources.masks, scene.x0)
            parts = [part for part in (masks, found.region) if part is not None]
            region = torch.stack(parts).amin(0) if parts else None
            rebuilt = self._back(replace(scene, asked=scene.said), found, region, None, trace, "rebuilding")
            edit = self._back(scene, found, region, data.patch, trace, "editing")
        return self._finished(sources, edit, rebuilt, found.region)

    # -- there and back ----------------------------------------------------------------------------------

    def _scene(
        self, host: Denoiser, sources: Pictures, request: Request, data: Material, rngs: Sequence[Generator]
    ) -> Scene:
        how = Sampling(steps=self.steps, guidance=self.guidance, size=sources.images.shape[-1]).over(host.defaults)
        assert how.steps is not None
        assert how.guidance is not None
        said, asked = _prompts(sources, request)
        return Scene(
            host=host,
            levels=levels(host, how.steps, depth=self.depth, size=how.size),
            x0=host.latents(sources.pixels()),
            said=_encoded(host, said, 1.0, how),
            asked=_encoded(host, asked, how.guidance, how),
            null=_null(host, sources.columns.get(AVOIDED) or ("",) * len(sources)),
            steps=how.steps,
            size=sources.images.shape[-1],
            guidance=how.guidance,
            prompts=tuple(zip(said, asked, strict=True)),
            rngs=rngs,
            data=data,
        )

    def _back(
        self, scene: Scene, found: Inverted, region: Tensor | None, patch: Patch | None, trace: Trace, what: str
    ) -> Tensor:
        """Pictures (n, 3, H, W) of what the walk down ends in; outside the region latents stay the sources'."""
        host, total = scene.host, len(scene.levels) - 1
        x = found.path[0] if found.start is None or scene.asked is scene.said else found.start
        with patch.applied(host) if patch is not None else nullcontext():
            if patch is not None:  # it may change the text encoders, or bring words
                scene = self._spoken(scene)
            guide = host.guide() if host.guide is not None else None
            for i, (here, there) in enumerate(pairwise(scene.levels)):
                at = EditStep(
                    index=i, total=total, here=here, there=there, x=x, source=found.path[i], said=scene.said,
                    asked=scene.asked, null=scene.null if found.nulls is None else found.nulls[i], scene=scene,
                    found=found,
                )  # fmt: skip
                x0 = self.step(at) if guide is None else _by_guide(guide, at)
                x = down(x, x0, here, there, None if found.noises is None else found.noises[i])
                x = x if region is None else torch.lerp(found.path[i + 1], x, region)
                trace.tell(what, i + 1, total)
            return host.pixels(x)

    def _spoken(self, scene: Scene) -> Scene:
        how = Sampling(guidance=scene.guidance).over(scene.host.defaults)
        said, asked = zip(*scene.prompts, strict=True)
        null = _null(scene.host, scene.null.texts or ("",) * len(said))
        return replace(
            scene, said=_encoded(scene.host, said, 1.0, how), asked=_encoded(scene.host, asked, scene.guidance, how),
            null=null,
        )  # fmt: skip

    def _finished(self, sources: Pictures, edit: Tensor, rebuilt: Tensor, region: Tensor | None) -> Edited:
        source = sources.pixels()
        edit, rebuilt = edit.float().cpu(), rebuilt.float().cpu()
        found = None if region is None else resized(region.float().cpu(), source)
        if self.finish == "whole":
            return Edited(images=edit, rebuilt=rebuilt, region=found)
        if self.finish == "mask":
            assert sources.masks is not None
            return Edited(images=torch.lerp(source, edit, sources.masks), rebuilt=rebuilt, region=sources.masks)
        change = edit - rebuilt
        region = where_changed(change)
        return Edited(images=source + region * change, rebuilt=rebuilt, region=region)


def _prompts(sources: Pictures, request: Request) -> tuple[tuple[str, ...], tuple[str, ...]]:
    said = sources.captions or ("",) * len(sources)
    asked = sources.columns.get(ASKED) or tuple(
        ", ".join([text, *(c.name for c in request.target)] if text else [c.name for c in request.target])
        for text in said
    )
    return said, asked


def _encoded(host: Denoiser, prompts: Sequence[str], guidance: float, how: Sampling) -> Cond:
    """Prompts as sampling at this scale encodes them: models that take the scale as an input read it here."""
    walk = host.walk(prompts, [0] * len(prompts), replace(how, guidance=guidance), guide=lambda: lambda step: step.x)
    return next(iter(walk)).cond


def _null(host: Denoiser, avoided: Sequence[str]) -> Cond:
    each = {text: host.null(1, text) for text in dict.fromkeys(avoided)}
    return replace(Cond.cat([each[text] for text in avoided]), texts=tuple(avoided))


def _by_guide(guide: Guide, at: EditStep) -> Tensor:
    """What a sampling-time system's rule makes of a step."""
    said, asked = zip(*at.scene.prompts, strict=True)
    prompts = said if at.asked is at.said else asked
    step = Step(
        host=at.scene.host, index=at.index, total=at.total, x=at.x, t=at.here.t.expand(len(at.x)), cond=at.asked,
        null=at.null, guidance=at.scene.guidance, prompts=tuple(prompts),
    )  # fmt: skip
    return guide(step)
