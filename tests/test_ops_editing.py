"""Inversion, the finish and regions: formulas once more, naively, and against diffusers' own."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor

from erase_fixtures import pictures
from hosts_fixtures import host_of, largest
from palimpsest.core.concept import Concept, Request
from palimpsest.core.delta import Dense
from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.core.images import Edited, ImageEdit
from palimpsest.core.patch import Hook, Patch
from palimpsest.core.pictures import Pictures
from palimpsest.core.sampling import Sampling
from palimpsest.edit.ddim_inversion import DDIMInversion
from palimpsest.edit.edit_friendly import EditFriendly
from palimpsest.edit.sdedit import SDEdit
from palimpsest.ops import inversion, masks
from palimpsest.ops.inversion import Level

STAR = Request(target=(Concept(name="star"),))


def vp(alpha: float) -> Level:
    a = torch.tensor(alpha).view(1, 1, 1, 1)
    return Level(torch.tensor(1), a, (1 - a**2).sqrt())


def rngs(n: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(n)]


def latents(n: int = 2) -> Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", ["sd", "sd_v"])
def test_up_is_the_inversion_of_diffusers(family: str) -> None:
    host, steps = host_of(family), 5
    scheduler = DDIMInverseScheduler.from_config(host.pipeline.scheduler.config, set_alpha_to_one=True)
    assert isinstance(scheduler, DDIMInverseScheduler)
    scheduler.set_timesteps(steps)
    x, cond = latents(), host.encode(["a star", "a red house"])
    with torch.no_grad():
        ours = inversion.inverted(host, x, cond, inversion.levels(host, steps))
        theirs = x
        for t in scheduler.timesteps:
            out = host.predict(theirs, t.expand(2), cond)
            theirs = scheduler.step(out, int(t), theirs, return_dict=False)[0]
    assert largest(ours[0], theirs) < 1e-4
    assert torch.equal(ours[-1], x)


@pytest.mark.parametrize("family", ["sd", "sd_v", "sd3", "flux"])
def test_down_is_the_models_own_sampling(family: str) -> None:
    """The same walk as the pipeline's scheduler takes (DDIM, Euler for flows), but for DDIM's last, clean level."""
    host, steps = host_of(family), 4
    walk = host.walk(["a red star"], [3], Sampling(steps=steps, guidance=1.0, size=16))
    states = [(step.x.float(), step.cond) for step in walk]
    levels, (x, cond) = inversion.levels(host, steps, size=16), states[0]
    with torch.no_grad():
        for i, (here, there) in enumerate(pairwise(levels)):
            assert largest(x, states[i][0]) < 2e-4, i
            x = inversion.down(x, inversion.denoised(host, x, here, cond), here, there)
    if family in ("sd3", "flux"):
        assert largest(x, walk.x) < 2e-4


def test_depth_walks_the_last_part_of_the_schedule() -> None:
    whole, part = (inversion.levels(host_of("sd"), 10, depth=depth) for depth in (1.0, 0.35))
    assert len(whole) == 11
    assert [float(level.t) for level in part] == [float(level.t) for level in whole[-4:]]
    assert float(part[-1].sigma) == 0


def test_the_spread_of_the_reverse_process_is_ddpms() -> None:
    here, there = vp(0.3), vp(0.6)
    a, b = 0.3**2, 0.6**2
    assert float(inversion.spread(here, there)) == pytest.approx(((1 - b) / (1 - a) * (1 - a / b)) ** 0.5)
    scheduler = DDIMScheduler(num_train_timesteps=10)
    scheduler.set_timesteps(10)
    variance = scheduler._get_variance(5, 4)
    levels = [vp(float(scheduler.alphas_cumprod[t] ** 0.5)) for t in (5, 4)]
    assert float(inversion.spread(*levels)) ** 2 == pytest.approx(float(variance), rel=1e-4)


def test_edit_friendly_noises_lead_through_states_of_independent_noise() -> None:
    levels = [vp(a) for a in (0.2, 0.5, 0.8, 1.0)]
    x0 = latents()
    path, noises = inversion.edit_friendly(x0, levels, lambda x, at: x.tanh() * at.alpha, rngs(2))
    again = rngs(2)
    for level, x in zip(levels[:-1], path, strict=False):
        noise = torch.stack([torch.randn(4, 8, 8, generator=rng) for rng in again])
        assert torch.allclose(x, level.alpha * x0 + level.sigma * noise)
    x = path[0]
    for i, (here, there) in enumerate(pairwise(levels)):
        predicted, new = x.tanh() * here.alpha, inversion.spread(here, there)
        noise = (x - here.alpha * predicted) / here.sigma
        x = there.alpha * predicted + (there.sigma**2 - new**2).clamp(min=0).sqrt() * noise + new * noises[i]
        if i < 2:
            assert largest(x, path[i + 1]) < 1e-5
    assert float(noises[-1].abs().max()) == 0


# -- regions and the finish ------------------------------------------------------------------------------


def test_a_region_is_where_colours_change_and_nowhere_else() -> None:
    change = torch.zeros(3, 3, 64, 64)
    change[0, :, 10:20, 30:40] = 0.5
    change[1, :, 10:20, 30:40] = 0.01  # below what can be seen
    region = masks.where_changed(change)
    assert region.shape == (3, 1, 64, 64)
    assert bool((region[0, 0, 11:19, 31:39] > 0.9).all())
    assert float(region[0, 0, :, :20].max()) == 0
    assert 0 < float(region[0, 0, 8, 35]) < 1, "edges are soft"
    assert float(region[1:].max()) == 0
    assert 0 <= float(region.min()) <= float(region.max()) <= 1


def test_thresholds_of_differences() -> None:
    values = torch.arange(16.0).view(1, 1, 4, 4)
    assert masks.by_quantile(values, 0.75).sum() == 4
    assert masks.by_largest(values, threshold=0.5).sum() == (values > 0.5 * 3 * values.mean()).sum()


@pytest.mark.parametrize("finish", ["difference", "mask", "whole"])
def test_finishes(finish: str) -> None:
    soft = torch.zeros(1, 1, 16, 16)
    soft[..., 8:] = 0.5
    some = pictures(1, captions=("a house",), columns={"asked": ("a star",)})
    whole = DDIMInversion(steps=3, finish="whole")(host_of("sd"), some, STAR)
    assert whole.rebuilt is not None
    masked = pictures(1, captions=("a house",), columns={"asked": ("a star",)}, masks=soft)
    done = DDIMInversion(steps=3, finish=finish)(host_of("sd"), masked if finish == "mask" else some, STAR)  # type: ignore[arg-type]
    source = some.pixels()
    if finish == "difference":
        assert done.region is not None
        expect = (source + done.region * (whole.images - whole.rebuilt)).clamp(0, 1)
        assert torch.allclose(done.images, expect, atol=1e-6)
    elif finish == "mask":
        assert torch.equal(done.images[..., :8], source[..., :8])
        assert not torch.equal(done.images, source)
    else:
        assert torch.equal(done.images, whole.images)


def test_finish_by_masks_needs_masks() -> None:
    with pytest.raises(BadRequest, match="no masks"):
        DDIMInversion(steps=3, finish="mask")(host_of("sd"), pictures(1), STAR)


def test_what_is_asked_is_made_of_the_request_where_no_column_says_it() -> None:
    some = pictures(2, captions=("a house", ""))
    asked = pictures(2, captions=("a house", ""), columns={"asked": ("a house, star", "star")})
    one, two = (SDEdit(steps=3)(host_of("sd"), sources, STAR).images for sources in (some, asked))
    assert torch.equal(one, two)


def test_what_is_avoided_is_a_negative_prompt() -> None:
    facts = {"captions": ("a house",), "columns": {"asked": ("a star",)}}
    plain = SDEdit(steps=3)(host_of("sd"), pictures(1, **facts), STAR).images
    facts["columns"] = {"asked": ("a star",), "avoided": ("blue",)}
    assert not torch.equal(plain, SDEdit(steps=3)(host_of("sd"), pictures(1, **facts), STAR).images)


# -- patches ---------------------------------------------------------------------------------------------


def test_a_patch_draws_the_edit_and_not_the_rebuilt_picture() -> None:
    host = host_of("sd")
    name, tensor = next((n, p) for n, p in host.root.named_parameters() if "to_k.weight" in n)
    patch = Patch(base=host.fingerprint(), deltas={name: Dense(value=tensor.detach() * 2)})
    some = pictures(1, captions=("a house",), columns={"asked": ("a house",)})
    before = host.fingerprint()
    plain, patched = (EditFriendly(steps=3)(host, some, STAR, patch=p) for p in (None, patch))
    assert host.fingerprint() == before
    assert plain.rebuilt is not None
    assert patched.rebuilt is not None
    assert torch.equal(plain.rebuilt, patched.rebuilt)
    assert torch.equal(plain.images, some.pixels())
    assert not torch.equal(patched.images, some.pixels())


def test_a_rule_of_sampling_edits_too() -> None:
    from palimpsest.core import catalog

    host = host_of("sd")
    patch = catalog.load("erase/negative_prompt")()(host, STAR)
    assert isinstance(patch.hooks[0], Hook)
    some = pictures(1, captions=("a house",), columns={"asked": ("a house",)})
    done = DDIMInversion(steps=3)(host, some, STAR, patch=patch)
    assert not torch.equal(done.images, some.pixels())
    assert host.guide is None


def test_systems_that_work_with_no_patch_say_so() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Same(ImageEdit):
        card = SDEdit.card

        def run(self, host: object, sources: Pictures, request: Request, **rest: object) -> Edited:  # type: ignore[override]
            return Edited(images=sources.pixels())

    with pytest.raises(Unsupported, match="leave out the patch"):
        Same()(host_of("sd"), pictures(1), STAR, patch=Patch(base="x"))
