"""Erasing through the text encoder, the data, a module of its own or a distilled generator: each formula by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hosts_fixtures import fresh_host, host_of
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.pictures import Pictures
from palimpsest.core.sampling import Sampling
from palimpsest.core.trace import Trace
from palimpsest.erase.adv_unlearn import AdvUnlearn
from palimpsest.erase.few_shot import FewShot
from palimpsest.erase.geom_erasing import Detected, GeomErasing, against, caption, where
from palimpsest.erase.homoglyphs import Homoglyphs
from palimpsest.erase.modular_lora import ModularLoRA, after_benign
from palimpsest.erase.score_forgetting import ScoreForgetting, generated, last_time
from palimpsest.ops import drawn as drawing
from palimpsest.ops.drawn import Drawn
from palimpsest.train.benign import Benign, Captioned
from palimpsest.train.walks import KeptWalk

STAR, MOON = Concept(name="star", prompts=("a red star",)), Concept(name="moon", prompts=("a moon",))
ERASE = Request(target=(STAR,), keep=(MOON,))
PROMPTS = ["a red star", "an image of star", "a photo of star", "a picture of star", "a painting of star"]


def eps(x: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
    host = host_of("sd")
    return host.pipeline.unet(x, t, encoder_hidden_states=host.encode(prompts).states).sample


@pytest.fixture
def visited(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], Any]]:
    """Every batch of walked points that a system trains on, with its prompts."""
    seen: list[tuple[list[str], Any]] = []
    points = KeptWalk.points

    def watch(self: KeptWalk, step: Any) -> Any:
        found = points(self, step)
        seen.append(([self.prompts[int(i)] for i in found.row], found))
        return found

    monkeypatch.setattr(KeptWalk, "points", watch)
    return seen


def losses(trace: Trace) -> list[float]:
    return [v for _, name, v in trace.log if name == "loss"]


@pytest.mark.parametrize("warmup", [1, 0])
def test_adv_unlearn_is_esd_under_attack_with_a_retain_set(
    visited: list[tuple[list[str], Any]], warmup: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from palimpsest.erase import adv_unlearn

    found: list[Any] = []
    inner = adv_unlearn.attack

    def watch(*args: Any, **settings: Any) -> Any:
        found.append(inner(*args, **settings))
        return found[-1]

    monkeypatch.setattr(adv_unlearn, "attack", watch)
    trace, host = Trace(), host_of("sd")
    method = AdvUnlearn(
        steps=1,
        batch=2,
        keep_batch=3,
        walk_steps=3,
        warmup=warmup,
        attack_steps=2,
        eta=1.5,
        keep_weight=0.7,
        captions=0,
    )
    patch = method(host, ERASE, trace=trace)
    assert all(n.startswith("text_encoder.") and "token_embedding" not in n for n in patch.deltas)
    (prompts, at), (stay, also) = visited
    assert all("star" in p for p in prompts)
    assert all("moon" in p for p in stay)
    assert bool(found) == (warmup == 0)
    with torch.no_grad():
        null, cond = eps(at.x, at.t, [""] * 2), eps(at.x, at.t, prompts)
        goal = null - 1.5 * (cond - null)
        with host.speaking(found[0] if found else {}):
            now = eps(at.x, at.t, prompts)
        kept = (eps(also.x, also.t, stay) - eps(also.x, also.t, stay)).square().mean()  # the student is the teacher
        expected = (now - goal).square().mean() + 0.7 * kept
    assert losses(trace)[0] == pytest.approx(float(expected), rel=1e-3)
    assert found == [] or not torch.allclose(now, cond, atol=1e-3)


def test_adv_unlearn_carries_its_words_from_attack_to_attack() -> None:
    starts: list[Tensor] = []
    from palimpsest.erase import adv_unlearn

    inner = adv_unlearn.attack

    def watch(host: Any, words: Any, *args: Any, **settings: Any) -> Any:
        starts.append(next(iter(words.values())).clone())
        out = inner(host, words, *args, **settings)
        starts.append(next(iter(out.values())).clone())
        return out

    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(adv_unlearn, "attack", watch)
        AdvUnlearn(steps=4, walk_steps=2, warmup=0, attack_steps=1, attack_every=2)(host_of("sd"), ERASE)
    assert len(starts) == 4
    assert torch.equal(starts[2], starts[1])
    assert not torch.equal(starts[1], starts[0])


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every batch of noisy pictures that a system trains on."""
    from palimpsest.erase import few_shot, geom_erasing

    seen: list[Any] = []

    def watch(*args: Any) -> Any:
        seen.append(drawing.noised(*args))
        return seen[-1]

    monkeypatch.setattr(few_shot, "noised", watch)
    monkeypatch.setattr(geom_erasing, "noised", watch)
    return seen


def test_few_shot_ascends_the_denoising_loss_of_given_pictures(noisy: list[Any]) -> None:
    host, trace = host_of("sd"), Trace()
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    only = Concept(name="star", prompts=("star",), kind="style")
    method = FewShot(steps=1, batch=3)
    import palimpsest.erase.few_shot as module

    said: list[list[str]] = []
    inner = module.encoded
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(module, "encoded", lambda h, p, r: (said.append([p[int(i)] for i in r]), inner(h, p, r))[1])
        method(host, Request(target=(only,)), data=images, trace=trace)
    at = noisy[0]
    with torch.no_grad():
        x0 = host.latents(images)
        assert all(any(torch.allclose(a, b, atol=1e-5) for b in x0) for a in at.x0)
        alpha, sigma = host.noise(at.t)
        noise = (at.x - alpha * at.x0) / sigma
        expected = -(eps(at.x, at.t, said[0]) - noise).square().mean()
    assert losses(trace)[0] == pytest.approx(float(expected), rel=1e-3)
    assert losses(trace)[0] < 0


def test_few_shot_trains_what_it_says_and_knows_whose_picture_is_whose() -> None:
    host = host_of("sd")
    choices: dict[str, Any] = {
        "mlp": lambda n: "mlp" in n,
        "attention": lambda n: "self_attn" in n,
        "mlp-final-attention": lambda n: "mlp" in n or "layers.2.self_attn" in n,
    }
    for train, inside in choices.items():
        names = FewShot(train=train).trains(host)  # type: ignore[arg-type]
        blocks = [f"{b}.{p}" for b, m in host.parts("text_block").items() for p, _ in m.named_parameters()]
        assert names == sorted(n for n in blocks if inside(n))
    images = torch.randint(0, 255, (2, 3, 16, 16), dtype=torch.uint8)
    data = Pictures(images=images, labels=torch.tensor([0, 2]), names=("a", "b"))
    with pytest.raises(BadRequest, match="label 2"):
        FewShot(steps=1)(host, Request(target=(STAR, MOON)), data=data)


def test_homoglyphs_match_the_students_states_to_the_teachers() -> None:
    host, trace = host_of("sd"), Trace()
    request = Request(target=(STAR,), keep=(MOON,), toward=(Concept(name="ring"),))
    method = Homoglyphs(steps=12, lr=3e-3, batch=500, captions=4, weight=2.0)
    patch = method(host, request, trace=trace)
    context = method.prepare(host, request, data=None, seed=0, trace=Trace())
    assert "a red star" in context.texts[0]
    index = context.texts[0].index("a red star")
    torch.testing.assert_close(context.read_as[0].states[index], host.encode(["a red ring"]).states[0])
    assert not any("star" in text for text in context.staying)
    assert "a moon" in context.staying
    with torch.no_grad():
        now = host.encode(context.texts[0]).states
        expected = 2.0 * (1 - torch.cosine_similarity(now, context.read_as[0].states, dim=-1).mean())
    assert losses(trace)[0] == pytest.approx(float(expected), rel=1e-3)
    assert losses(trace)[-1] < 0.8 * losses(trace)[0]
    assert all(n.startswith("text_encoder.") for n in patch.deltas)


def test_a_target_of_one_character_is_put_into_texts() -> None:
    method = Homoglyphs(captions=3)
    request = Request(target=(Concept(name="ο"),), keep=(MOON,), toward=(Concept(name="o"),))
    context = method.prepare(host_of("sd"), request, data=None, seed=0, trace=Trace())
    assert "a mοon" in context.texts[0]
    torch.testing.assert_close(
        context.read_as[0].states[context.texts[0].index("a mοon")], host_of("sd").encode(["a moon"]).states[0]
    )
    with pytest.raises(BadRequest, match="looks like"):
        method(host_of("sd"), Request(target=(Concept(name="ο"),), keep=(MOON,)))


def test_modular_lora_is_esd_in_low_rank_and_adds_up(visited: list[tuple[list[str], Any]]) -> None:
    host, trace = host_of("sd"), Trace()
    safety = ModularLoRA(steps=2, batch=2, walk_steps=3, rank=2, eta=0.5, lr=1e-2)(host, ERASE, trace=trace)
    prompts, at = visited[0]
    with torch.no_grad():
        null, cond = eps(at.x, at.t, [""] * 2), eps(at.x, at.t, prompts)
        expected = (cond - (null - 0.5 * (cond - null))).square().mean()
    assert losses(trace)[0] == pytest.approx(float(expected), rel=1e-3)
    assert all(d.rank() == 2 for d in safety.deltas.values())
    before = host.fingerprint()
    pictures = Captioned(prompts=["a moon"], pictures=Drawn(row=torch.zeros(2, dtype=torch.int64), x0=at.x))
    tuning = Benign(steps=2, lr=1e-2, rank=2, batch=2)
    found = after_benign(host, safety, pictures, tuning=tuning)
    assert host.fingerprint() == before
    name = next(iter(safety.deltas))
    shape = dict(host.root.named_parameters())[name].shape
    alone, beside = found["alone"].deltas[name].dense(shape), found["beside"].deltas[name].dense(shape)
    torch.testing.assert_close(beside, safety.deltas[name].dense(shape) + alone, atol=1e-6, rtol=1e-4)
    assert not torch.allclose(found["on top"].deltas[name].dense(shape), beside, atol=1e-5)
    with safety.applied(host):
        later = tuning(host, ERASE, data=pictures)
    with found["on top"].applied(host):
        once = dict(host.root.named_parameters())[name].detach().clone()
    with safety.applied(host), later.applied(host):
        torch.testing.assert_close(dict(host.root.named_parameters())[name], once, atol=1e-6, rtol=1e-4)


def test_geom_erasing_writes_down_what_is_where(noisy: list[Any]) -> None:
    mask = torch.zeros(16, 16)
    mask[0, 15] = mask[8, 0] = 1
    assert where(mask, 4) == "4 9"
    assert where(mask, 0) == ""
    assert caption("a red", "mark", "4 9") == "a red, mark 4 9"
    assert caption("a red", "", "") == "a red"
    host, trace = host_of("sd"), Trace()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    data = Detected(images=images, prompts=["a", "b"], names=["mark", ""], masks=torch.stack([mask, 0 * mask]))
    method = GeomErasing(steps=1, batch=2, bins=2, area_weight=3.0)
    patch = method(host, Request(target=(Concept(name="mark"),)), data=data, trace=trace)
    assert patch.hooks[0].params == {"negative": "mark 1 2 3 4"}
    at = noisy[0]
    weight = torch.ones(2, 1, 8, 8)
    weight[0, 0, 0, 7] = weight[0, 0, 4, 0] = 3.0
    with torch.no_grad():
        alpha, sigma = host.noise(at.t)
        noise = (at.x - alpha * at.x0) / sigma
        off = eps(at.x, at.t, [["a, mark 2 3", "b"][int(i)] for i in at.row]) - noise
        expected = (weight[at.row] * off.square()).mean()
    assert losses(trace)[0] == pytest.approx(float(expected), rel=1e-3)


def test_geom_erasing_samples_against_its_words() -> None:
    host = host_of("sd")
    found = host.sample(["a red star"], [3], Sampling(steps=3), guide=lambda: against(host, "mark 1"))
    expected = host.sample(["a red star"], [3], Sampling(steps=3, negative="mark 1"))
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    both = host.sample(["a red star"], [3], Sampling(steps=3, negative="blurry"), guide=lambda: against(host, "mark 1"))
    torch.testing.assert_close(
        both, host.sample(["a red star"], [3], Sampling(steps=3, negative="blurry, mark 1")), atol=2e-3, rtol=0
    )


def test_score_forgetting_draws_in_one_prediction_whatever_is_asked_for() -> None:
    host = fresh_host("sd")
    settings = {"set_alpha_to_one": True, "timestep_spacing": "trailing"}  # a scheduler that ends without noise
    host.pipeline.scheduler = type(host.pipeline.scheduler).from_config(host.pipeline.scheduler.config, **settings)
    patch = ScoreForgetting(steps=2, batch=4, lr=1e-3)(host, ERASE)
    assert all(n.startswith("unet.") for n in patch.deltas)
    with patch.applied(host):
        z = next(iter(host.walk(["a red star"], [3], Sampling(steps=1)))).x
        with torch.no_grad():
            once = host.decode(generated(host, z, host.encode(["a red star"]), 0.625))
        for steps, guidance in ((1, 1.0), (4, 7.5)):
            found = host.sample(["a red star"], [3], Sampling(steps=steps, guidance=guidance))
            torch.testing.assert_close(found, once, atol=1e-3, rtol=0)
        again = host.sample(["a red star", "a moon"], [4, 3], Sampling(steps=2))
    assert not torch.allclose(again[0], again[1], atol=1e-3)
    assert host.guide is None


def test_score_forgettings_losses_are_the_papers() -> None:
    """At the start generator, fake score and model are one, so that every score is the model's own."""
    from palimpsest.erase import score_forgetting

    host, trace, seen = host_of("sd"), Trace(), []
    inner = host.denoise

    def watch(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        seen.append((x.detach(), t, cond))
        return inner(x, t, cond)

    drew: list[Tensor] = []

    def draw(*args: Any) -> Tensor:
        drew.append(generated(*args))
        return drew[-1]

    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(host, "denoise", watch)
        patching.setattr(score_forgetting, "generated", draw)
        method = ScoreForgetting(steps=1, batch=4, guidance=2.0, forget_weight=3.0, forget_share=0.25)
        method(host, ERASE, trace=trace)
    _, (x_f, t, asked), (x_g, t2, asked2), (x_r, t3, both) = seen  # the first is the generator's
    torch.testing.assert_close(x_f, x_g)
    assert torch.equal(t, t2)
    assert torch.equal(t3, t.repeat(2))
    assert torch.equal(x_r, x_f.repeat(2, 1, 1, 1))
    assert torch.equal(asked.states, asked2.states)
    assert torch.allclose(both.states[0], host.encode([""]).states[0], atol=1e-5)  # the target's score answers as ""
    assert torch.equal(both.states[1:4], asked.states[1:])
    assert float(t.max()) <= 0.98 * last_time(host)
    (x0,) = drew
    with torch.no_grad():
        alpha, sigma = host.noise(t)
        fake = host.denoise(x_f, t, asked)
        real, null = host.denoise(x_f, t, both[slice(0, 4)]), host.denoise(x_f, t, host.encode([""]).repeat(4))
        real = null + 2.0 * (real - null)
        learns = ((x_f - alpha * fake) / sigma - (x_f - alpha * x0) / sigma).square().mean()
        size = (x0 - real).abs().mean((1, 2, 3), keepdim=True)
        weight = torch.tensor([3.0, 1.0, 1.0, 1.0]).view(-1, 1, 1, 1)
        generates = (weight * (real - fake) * (fake - x0) / size).mean()
    assert losses(trace)[0] == pytest.approx(float(learns + generates), rel=1e-3)


def test_score_forgettings_networks_learn_from_their_own_losses_only() -> None:
    from palimpsest.erase.score_forgetting import FAKE

    one, two = torch.ones(1), torch.full((1,), 2.0)
    method = ScoreForgetting(steps=1)
    found = method.gradient(None, [{FAKE + "w": one}, {FAKE + "w": two, "w": two}])  # type: ignore[arg-type]
    assert found == {FAKE + "w": one, "w": two}
