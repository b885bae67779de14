"""Systems that edit pictures: each one's formula once more, naively."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from erase_fixtures import pictures
from hosts_fixtures import host_of, largest
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.pictures import Pictures
from palimpsest.edit.ddim_inversion import DDIMInversion
from palimpsest.edit.diffedit import DiffEdit
from palimpsest.edit.guide_and_rescale import GuideAndRescale
from palimpsest.edit.ledits_pp import LEditsPP
from palimpsest.edit.null_text import NullText
from palimpsest.edit.prompt_to_prompt import PromptToPrompt, aligned
from palimpsest.edit.sdedit import SDEdit
from palimpsest.edit.style_id import StyleID
from palimpsest.ops.attention import captured
from palimpsest.ops.editing import EditStep, Inverted, Scene

STAR = Request(target=(Concept(name="star"),))


def sources(said: str = "a red house") -> Pictures:
    return pictures(2, captions=(said,) * 2, columns={"asked": ("a red star",) * 2})


def test_sdedit_starts_from_the_picture_and_its_own_noise() -> None:
    seen: list[tuple[Scene, Inverted]] = []

    class Watched(SDEdit):
        def invert(self, scene: Scene) -> Inverted:
            states = [rng.get_state() for rng in scene.rngs]
            seen.append((scene, super().invert(scene)))
            for rng, state in zip(scene.rngs, states, strict=True):
                rng.set_state(state)
            return seen[-1][1]

    Watched(steps=4, depth=0.5)(host_of("sd"), sources(), STAR)
    scene, found = seen[0]
    noise = torch.stack([torch.randn(4, 8, 8, generator=rng) for rng in scene.rngs])
    first = scene.levels[0]
    assert len(scene.levels) == 3
    assert largest(found.path[0], first.alpha * scene.x0 + first.sigma * noise) < 1e-6


def test_the_mask_of_diffedit() -> None:
    seen: list[tuple[Scene, Inverted, list[Tensor]]] = []

    class Watched(DiffEdit):
        def invert(self, scene: Scene) -> Inverted:
            states = [rng.get_state() for rng in scene.rngs]
            found = super().invert(scene)
            for rng, state in zip(scene.rngs, states, strict=True):
                rng.set_state(state)
            noises = [torch.stack([torch.randn(4, 8, 8, generator=rng) for rng in scene.rngs]) for _ in range(2)]
            seen.append((scene, found, noises))
            return found

    host = host_of("sd")
    Watched(steps=4, draws=2, depth=1.0, mask_depth=0.5)(host, sources(), STAR)
    scene, found, noises = seen[0]
    at, total = scene.levels[2], torch.zeros(2, 4, 8, 8)
    with torch.no_grad():
        for noise in noises:
            x, t = at.alpha * scene.x0 + at.sigma * noise, at.t.expand(2)
            total += (host.predict(x, t, scene.asked) - host.predict(x, t, scene.said)).abs()
    assert found.region is not None
    for row in range(2):
        size = total[row].mean(0)
        expect = (size / (3 * size.mean())).clamp(max=1) > 0.5
        assert torch.equal(found.region[row, 0].bool(), expect)
    assert 0 < float(found.region.mean()) < 1


def test_ledits_adds_the_change_where_it_is_largest() -> None:
    seen: list[tuple[EditStep, Tensor]] = []

    class Watched(LEditsPP):
        def step(self, at: EditStep) -> Tensor:
            seen.append((at, super().step(at)))
            return seen[-1][1]

    host = host_of("sd")
    Watched(steps=3, guidance=4.0, threshold=0.75)(host, sources(""), STAR)
    at, ours = seen[-1]
    t = at.here.t.expand(2)
    with torch.no_grad():
        empty, asked = (host.predict(at.x, t, host.encode([text] * 2)) for text in ("", "a red star"))
        for row in range(2):
            size = (asked - empty)[row].abs().sum(0)
            mask = size >= size.flatten().quantile(0.75)
            noise = empty[row] + 4.0 * mask * (asked - empty)[row]
            x0 = (at.x[row] - at.here.sigma[0] * noise) / at.here.alpha[0]
            assert largest(ours[row], x0) < 1e-3 * float(x0.abs().max())


def test_a_learnt_null_text_leads_the_guided_step_nearer_to_the_inversion() -> None:
    seen: list[tuple[Scene, Inverted]] = []

    class Watched(NullText):
        def invert(self, scene: Scene) -> Inverted:
            seen.append((scene, super().invert(scene)))
            return seen[-1][1]

    Watched(steps=2, guidance=4.0, depth=0.5, inner=20)(host_of("sd"), sources(), STAR)
    (scene, found), here = seen[0], seen[0][0].levels[0]
    assert found.nulls is not None
    x, left = found.path[0], []
    with torch.no_grad():
        for null in (scene.null, found.nulls[0]):
            free, said = (scene.host.denoise(x, here.t.expand(2), cond) for cond in (null, scene.said))
            left.append((free + 4.0 * (said - free) - found.path[1]).pow(2).flatten(1).mean(1))  # into the clean level
    assert bool((left[1] < 0.95 * left[0]).all())


def test_negative_prompt_inversion_rebuilds_without_guidance() -> None:
    host, bare = host_of("sd"), DDIMInversion(steps=4, guidance=1.0)
    negative = NullText(steps=4, guidance=4.0, optimise=False)
    one, two = (method(host, sources(), STAR).rebuilt for method in (bare, negative))
    assert one is not None
    assert two is not None
    assert largest(one, two) < 1e-3
    assert not torch.equal(
        negative(host, sources(), STAR).images, replace(negative, guidance=2.0)(host, sources(), STAR).images
    )


def test_tokens_of_prompt_to_prompt_are_paired_by_their_words() -> None:
    host = host_of("sd")

    def ends(text: str) -> int:
        return int(host.tokens([text]).lengths[0]) - 1

    length = host.encode(["a red house"]).states.shape[1]
    same = aligned(host, ["a red house"], ["a red house"], length)
    assert torch.equal(same, torch.arange(length)[None])
    (row,) = aligned(host, ["a red house"], ["a very red house"], length).tolist()
    a, very, red = ends("a"), ends("a very"), ends("a very red")
    assert row[: a + 1][:a] == list(range(a))
    assert row[a:very] == [-1] * (very - a), "a new word keeps its own maps"
    assert row[very:red] == list(range(a, ends("a red")))
    assert row[ends("a very red house")] == ends("a red house")


def test_prompt_to_prompt_takes_the_maps_of_the_inverted_picture() -> None:
    """Word for word, so that every map is taken over; against two forwards one after another."""
    host = host_of("sd")
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    class Watched(PromptToPrompt):
        def step(self, at: EditStep) -> Tensor:
            x0 = super().step(at)
            seen.append((x0, at.guided(), self._naive(at)))
            return x0

        def _naive(self, at: EditStep) -> Tensor:
            """Two forwards: the picture's maps are kept in the first and put into the second, row by row."""
            with captured(host) as words, captured(host, role="self_attention") as pixels:
                host.denoise(at.source, at.here.t.expand(len(at.x)), at.said)

            def put(kept: dict[str, list[Tensor]]) -> Callable[[str, Tensor], Tensor]:
                return lambda name, maps: torch.cat([maps[:-2], kept[name][0]])

            with host.attending(put(words), "cross_attention"), host.attending(put(pixels), "self_attention"):
                return at.guided()

    how = {"steps": 2, "depth": 1.0, "guidance": 2.0}
    Watched(**how, cross=0.0, self_share=0.0)(host, sources(), STAR)
    for x0, plain, _ in seen:
        torch.testing.assert_close(x0, plain, atol=1e-4, rtol=1e-3)
    seen.clear()
    other = replace(sources(), columns={"asked": ("a red mouse",) * 2})
    assert host.tokens(["house"]).lengths == host.tokens(["mouse"]).lengths
    Watched(**how, cross=1.0, self_share=1.0)(host, other, STAR)
    for x0, _, naive in seen:
        torch.testing.assert_close(x0, naive, atol=1e-4, rtol=1e-3)
    assert max(largest(x0, plain) for x0, plain, _ in seen) > 1e-4
    two = sources()
    for prompt in ("a red house", "a red star"):
        edited = PromptToPrompt(**how, finish="whole")(host, replace(two, columns={"asked": (prompt,) * 2}), STAR)
        assert edited.rebuilt is not None
        assert (largest(edited.images, edited.rebuilt) == 0) == (prompt == "a red house")


def test_guide_and_rescale_follows_the_gradient_no_longer_than_allowed() -> None:
    """Picture by picture, by finite differences along the step that it takes."""
    host = host_of("sd")
    seen: list[tuple[EditStep, Tensor]] = []

    class Watched(GuideAndRescale):
        def step(self, at: EditStep) -> Tensor:
            seen.append((at, super().step(at)))
            return seen[-1][1]

    how = Watched(steps=4, depth=1.0, guidance=2.0, share=0.5)
    how(host, sources(), STAR)
    assert len(seen) == 8

    def energy(at: EditStep, x: Tensor, row: int) -> float:
        kept: list[list[Tensor]] = []
        features: list[Any] = []
        block = list(host.parts("decoder_block").values())[-1]
        hook = block.register_forward_hook(lambda m, a, out: features.append(out))
        with torch.no_grad():
            for latents in (x, at.source[row : row + 1]):
                with captured(host, role="self_attention") as maps:
                    host.denoise(latents, at.here.t[None], at.said[row : row + 1])
                kept.append([m[0] for m in maps.values()])
        hook.remove()
        layout = sum(float((a - b).double().square().mean()) for a, b in zip(*kept, strict=True))
        return 3e5 * layout + 500.0 * float((features[0] - features[1]).double().abs().mean())

    lengths = []
    for at, ours in seen[-3:]:
        with torch.no_grad():
            null, asked = (host.denoise(at.x, at.here.t.expand(2), cond) for cond in (at.null, at.asked))
        plain = null + 2.0 * (asked - null)
        if at.index >= 2:
            assert largest(ours, plain) < 1e-4
            continue
        ratio = float(at.here.alpha / at.here.sigma)
        for row in range(2):
            added = (plain - ours)[row] * ratio  # to the noise
            lengths.append(float(added.norm() / (2.0 * ratio * (asked - null)[row].norm())))
            x, along = at.x[row : row + 1], added[None] / added.norm()
            slope = (energy(at, x + 1e-2 * along, row) - energy(at, x - 1e-2 * along, row)) / 2e-2
            other = torch.randn(along.shape, generator=torch.Generator().manual_seed(row))
            other = (other - (other * along).sum() * along) / other.norm()
            aside = (energy(at, x + 1e-2 * other, row) - energy(at, x - 1e-2 * other, row)) / 2e-2
            assert slope > 0
            assert slope > 10 * abs(aside), "the step goes along the gradient"
    assert lengths
    assert all(0.33 - 1e-3 <= n <= 3 + 1e-3 for n in lengths)


def test_guide_and_rescale_refuses_bounds_that_cross() -> None:
    with pytest.raises(BadRequest, match=r"least is 2\.0 and most 1\.0"):
        GuideAndRescale(least=2.0, most=1.0)


class Injected:
    """A diffusers attention processor with the paper's formula, for one row of content and one of style."""

    def __init__(self, content: Tensor, style: Tensor) -> None:
        self.content, self.style = content, style

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        q = 0.75 * attn.to_q(self.content) + 0.25 * attn.to_q(hidden_states)
        k, v, outs = attn.to_k(self.style), attn.to_v(self.style), []
        width = q.shape[-1] // attn.heads
        for head in range(attn.heads):
            part = slice(head * width, (head + 1) * width)
            scores = 1.5 * q[..., part] @ k[..., part].transpose(1, 2) / width**0.5
            outs.append(scores.softmax(-1) @ v[..., part])
        return attn.to_out[1](attn.to_out[0](torch.cat(outs, -1)))


def test_style_id_reads_keys_and_values_of_the_style() -> None:
    """Row by row, in three forwards with the formula as a processor of its own."""
    host, seen = host_of("sd"), list[tuple[EditStep, Tensor]]()

    class Watched(StyleID):
        def step(self, at: EditStep) -> Tensor:
            seen.append((at, super().step(at)))
            return seen[-1][1]

    style = pictures(4, captions=("",) * 4)[[2, 3]]
    edited = Watched(steps=2, layers=0.5, finish="whole")(host, sources(), STAR, data={"references": style})
    names = [n for n in host.parts("self_attention") if ".up_blocks." in n]
    chosen = names[-round(0.5 * len(names)) :]
    assert 0 < len(chosen) < len(names)
    layers = {name: layer for name, layer in host.parts("self_attention").items() if name in chosen}

    def states(x: Tensor, at: EditStep) -> dict[str, Tensor]:
        kept: dict[Any, Any] = {}
        hooks = [
            layer.register_forward_pre_hook(lambda m, args, name=name: kept.__setitem__(name, args[0]))
            for name, layer in layers.items()
        ]
        host.denoise(x, at.here.t[None], host.encode([""]))
        for hook in hooks:
            hook.remove()
        return kept

    before = {name: layer.processor for name, layer in layers.items()}
    for at, ours in (seen[1], seen[2], seen[3]):  # the last one rebuilt, both of the edit
        for row in range(2):
            one = slice(row, row + 1)
            of = at.source if at.asked is at.said else at.found.kept[at.index]
            with torch.no_grad():
                content, other = states(at.source[one], at), states(of[one], at)
                for name, layer in layers.items():
                    layer.processor = Injected(content[name], other[name])  # type: ignore[assignment]
                naive = host.denoise(at.x[one], at.here.t[None], host.encode([""]))
                for name, layer in layers.items():
                    layer.processor = before[name]
            assert largest(ours[one], naive) < 1e-3 * float(naive.abs().max())
    first, paths = seen[2][0], (seen[2][0].source, seen[2][0].found.kept[0])
    for row in range(2):
        for channel in range(4):
            c, s = (path[row, channel] for path in paths)
            assert largest(first.x[row, channel], (c - c.mean()) / c.std() * s.std() + s.mean()) < 1e-4
    assert torch.equal(seen[0][0].x, seen[0][0].source), "what is rebuilt starts where the picture is"
    one_for_all = StyleID(steps=2, layers=0.5, finish="whole")(host, sources(), STAR, data={"references": style[[0]]})
    assert largest(edited.images[0], one_for_all.images[0]) < 1e-4
    assert largest(edited.images[1], one_for_all.images[1]) > 1e-3


def test_style_id_says_what_references_it_takes() -> None:
    style = pictures(3)
    for data, words in (({}, "needs data called 'references'"), ({"references": style}, "3 references for 2 pictures")):
        with pytest.raises(BadRequest, match=words):
            StyleID(steps=2)(host_of("sd"), sources(), STAR, data=data)
