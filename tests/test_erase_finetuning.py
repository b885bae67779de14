"""Fine-tuning erasers on a small random pipeline, each against its paper's loop written once more, naively."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.functional import mse_loss

from hosts_fixtures import sd_pipeline
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.sampling import Sampling
from palimpsest.core.trace import Trace
from palimpsest.erase import ant, concept_ablation, domain_correction, salun
from palimpsest.erase.all_but_one import AllButOne
from palimpsest.erase.ant import ANT
from palimpsest.erase.concept_ablation import ConceptAblation
from palimpsest.erase.domain_correction import BESIDE, DomainCorrection
from palimpsest.erase.salun import SalUn
from palimpsest.hosts.sd import SDHost
from palimpsest.ops.drawn import draw, noised
from palimpsest.ops.parts import parameters
from palimpsest.train.walks import KeptWalk

STAR, MOON, RING = (Concept(name=n, prompts=(f"a red {n}",)) for n in ("star", "moon", "ring"))
TO_MOON = Request(target=(STAR,), toward=(MOON,))
PROMPTS = ["a red star", "an image of star", "a photo of star", "a picture of star", "a painting of star",
           "a drawing of star"]  # fmt: skip
FAST: dict[str, Any] = {"steps": 3, "batch": 2, "walk_steps": 4, "lr": 1e-3, "guidance": 2.0}


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SDHost:
    torch.manual_seed(0)
    return SDHost(sd_pipeline(tmp_path_factory.mktemp("sd"), request.param), name="small sd")


def own(host: SDHost, net: Any, x: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
    """What a network itself predicts, noise or velocity: losses are errors of that."""
    return net(x, t, encoder_hidden_states=host.encode(prompts).states).sample


def old(host: SDHost, x: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
    with torch.no_grad():
        return own(host, host.pipeline.unet, x, t, prompts)


def learnt(host: SDHost, at: Any) -> Tensor:
    """What a network is trained to predict at a noisy picture."""
    alpha, sigma = host.noise(at.t)
    noise = (at.x - alpha * at.x0) / sigma
    return noise if host.prediction == "epsilon" else alpha * noise - sigma * at.x0


def moons(prompts: list[str]) -> list[str]:
    return [p.replace("star", "moon") for p in prompts]


def of(prompts: list[str], at: Any) -> list[str]:
    return [prompts[int(i)] for i in at.row]


class Naive:
    """A copy of the network, trained by plain Adam on gradients that a test computes."""

    def __init__(self, host: SDHost, names: list[str], lr: float, clip: float | None = None) -> None:
        self.net = copy.deepcopy(host.pipeline.unet)
        named = {f"unet.{n}": p for n, p in self.net.named_parameters()}
        self.trained = {n: named[n].requires_grad_(True) for n in names}
        self.start = {n: p.detach().clone() for n, p in self.trained.items()}
        self.adam, self.clip = torch.optim.Adam(self.trained.values(), lr=lr), clip

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        found = torch.autograd.grad(loss, list(self.trained.values()), allow_unused=True)
        zeros = {n: torch.zeros_like(p) for n, p in self.trained.items()}
        return {n: zeros[n] if g is None else g for n, g in zip(self.trained, found, strict=True)}

    def step(self, gradients: Mapping[str, Tensor]) -> None:
        for n, p in self.trained.items():
            p.grad = gradients[n].clone()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.trained.values(), self.clip)
        self.adam.step()

    def agrees(self, patch: Any, ties: int = 0) -> None:
        """With up to `ties` weights left out that only one of the two trained: rounding decides at a mask's edge."""
        mine = torch.cat([(p.detach() - self.start[n]).flatten() for n, p in self.trained.items()])
        theirs = torch.cat(
            [patch.deltas[n].dense(p.shape).flatten() if n in patch.deltas else torch.zeros(p.numel())
             for n, p in self.trained.items()]
        )  # fmt: skip
        assert set(patch.deltas) <= set(self.trained)
        both = (mine == 0) == (theirs == 0)
        assert int((~both).sum()) <= ties or not ties
        mine, theirs = (mine[both], theirs[both]) if ties else (mine, theirs)
        assert float(mine.norm()) > 0
        assert float((mine - theirs).norm()) < 0.02 * float(mine.norm())


def recorded(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[tuple[Any, ...], Any]]:
    """Every call of a function while it goes on working: its arguments and what it returned."""
    real: Callable[..., Any] = getattr(owner, name)
    calls: list[tuple[tuple[Any, ...], Any]] = []

    def watched(*args: Any, **more: Any) -> Any:
        calls.append((args, real(*args, **more)))
        return calls[-1][1]

    monkeypatch.setattr(owner, name, watched)
    return calls


# -- Concept Ablation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["model", "noise"])
@pytest.mark.parametrize("keep_weight", [0.0, 0.5])
def test_concept_ablation(host: SDHost, monkeypatch: pytest.MonkeyPatch, objective: Any, keep_weight: float) -> None:
    calls = recorded(monkeypatch, concept_ablation, "noised")
    request = Request(target=(STAR,), toward=(MOON,), keep=(RING,))
    method = ConceptAblation(**FAST, prompts=0, objective=objective, keep_weight=keep_weight)
    patch = method(host, request)
    naive = Naive(host, parameters(host, "kv", ""), lr=1e-3, clip=1.0)
    keeping = [*moons(PROMPTS), *(p.replace("star", "ring") for p in PROMPTS)]
    points = [at for _, at in calls]
    for k in range(3):
        at = points.pop(0)
        goal = learnt(host, at) if objective == "noise" else old(host, at.x, at.t, moons(of(PROMPTS, at)))
        loss = mse_loss(own(host, naive.net, at.x, at.t, of(PROMPTS, at)), goal)
        if keep_weight:
            stays = points.pop(0)
            out = own(host, naive.net, stays.x, stays.t, of(keeping, stays))
            loss = loss + keep_weight * mse_loss(out, learnt(host, stays))
        naive.step(naive.gradients(loss))
        assert len(at) == 2, k
    naive.agrees(patch)


def test_concept_ablation_draws_no_more_than_it_uses_and_trains_at_one_forward_and_one_with_gradients(
    host: SDHost,
) -> None:
    trace = Trace()
    ConceptAblation(**FAST)(host, TO_MOON, trace=trace)
    assert trace.forwards["denoiser"] == 6 * 4 * 2 + 3 * 2 * (1 + 1)  # six pictures, then three steps
    assert trace.forwards["text_encoder"] <= 6 + 6 + 6 + 1
    assert "autoencoder" not in trace.forwards


@pytest.mark.parametrize(
    ("owner", "system"), [(concept_ablation, ConceptAblation), (domain_correction, DomainCorrection)]
)
def test_anchors_are_drawn_in_many_contexts(
    host: SDHost, monkeypatch: pytest.MonkeyPatch, owner: Any, system: Any
) -> None:
    calls = recorded(monkeypatch, owner, "draw")
    system(**{**FAST, "pictures": 60, "batch": 20})(host, TO_MOON)
    said = calls[0][0][1]
    assert len(said) == 60  # one for each picture, of the 200 that are drawn up
    assert list(said[: len(PROMPTS)]) == moons(PROMPTS)
    assert len(set(said)) >= 55
    assert all("moon" in prompt and "star" not in prompt for prompt in said)


# -- SalUn -----------------------------------------------------------------------------------------------


def test_salun(host: SDHost, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch, salun, "noised")
    method = SalUn(**FAST, share=0.3, keep_weight=0.5, mask_guidance=2.0)
    patch = method(host, Request(target=(STAR,), keep=(MOON,)))
    every, *points = [at for _, at in calls]
    names = parameters(host, "full", "")

    scout = Naive(host, names, lr=0.0)
    sums = {n: torch.zeros_like(p) for n, p in scout.trained.items()}
    for i in range(0, 6, 2):
        at = every[i : i + 2]
        cond, null = own(host, scout.net, at.x, at.t, of(PROMPTS, at)), own(host, scout.net, at.x, at.t, [""] * 2)
        loss = -mse_loss((1 + 2.0) * cond - 2.0 * null, learnt(host, at))
        sums = {n: sums[n] + g for n, g in scout.gradients(loss).items()}
    sizes = torch.cat([g.abs().flatten() for g in sums.values()])
    least = sizes.sort(descending=True).values[round(0.3 * len(sizes)) - 1]

    naive = Naive(host, names, lr=1e-3)
    for _ in range(3):
        f, r = points.pop(0), points.pop(0)
        with torch.no_grad():
            goal = own(host, naive.net, f.x, f.t, moons(of(PROMPTS, f)))
        loss = mse_loss(own(host, naive.net, f.x, f.t, of(PROMPTS, f)), goal)
        out = own(host, naive.net, r.x, r.t, of(moons(PROMPTS), r))
        loss = loss + 0.5 * mse_loss(out, learnt(host, r))
        naive.step({n: g * (sums[n].abs() >= least) for n, g in naive.gradients(loss).items()})
    naive.agrees(patch)
    moved = sum(int((d.dense(scout.trained[n].shape) != 0).sum()) for n, d in patch.deltas.items())
    assert moved <= 0.301 * len(sizes)


def test_salun_labels() -> None:
    two = Request(target=(STAR, Concept(name="key")), keep=(MOON, RING))
    asked, answers, texts = SalUn()._labels(two)
    assert asked[0] == "a red star"
    assert [texts[i] for i in answers[0]] == ["a red moon", "a red ring"]
    assert [texts[i] for i in answers[asked.index("a photo of key")]] == ["a photo of moon", "a photo of ring"]
    _, answers, texts = SalUn()._labels(replace(two, toward=(Concept(name="cup"),)))
    assert [texts[i] for i in answers[0]] == ["a red cup"]
    _, answers, texts = SalUn()._labels(replace(two, keep=()))
    assert [texts[i] for i in answers[0]] == [""]


# -- All but One -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("toward", [False, True])
def test_all_but_one(host: SDHost, monkeypatch: pytest.MonkeyPatch, toward: bool) -> None:
    calls = recorded(monkeypatch, KeptWalk, "points")
    method = AllButOne(**FAST, eta=0.7, keep_weight=0.4)
    patch = method(host, TO_MOON if toward else Request(target=(STAR,)))
    naive = Naive(host, parameters(host, "xattn", ""), lr=1e-3)
    assert len(calls) == method.steps
    for _, at in calls:
        prompts, none = of(PROMPTS, at), [""] * 2
        null = old(host, at.x, at.t, none)
        if toward:
            guidance = old(host, at.x, at.t, moons(prompts)) - null
        else:
            guidance = -0.7 * (old(host, at.x, at.t, prompts) - null)
        mine = own(host, naive.net, at.x, at.t, none)
        loss = mse_loss(own(host, naive.net, at.x, at.t, prompts) - mine, guidance) + 0.4 * mse_loss(mine, null)
        naive.step(naive.gradients(loss))
    naive.agrees(patch)


def test_all_but_one_costs_what_its_formula_needs(host: SDHost) -> None:
    trace = Trace()
    AllButOne(**{**FAST, "steps": 8})(host, TO_MOON, trace=trace)
    assert trace.forwards["denoiser"] == 8 * 2 * (2 + 1 + 2)


# -- Domain correction -----------------------------------------------------------------------------------


def patches(weights: Mapping[str, Tensor]) -> nn.Module:
    """The discriminator for latents of 4 x 8 x 8: two halvings."""
    net = nn.Sequential(
        nn.Conv2d(4, 64, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(64, 128, 4, 2, 1), nn.BatchNorm2d(128, track_running_stats=False), nn.LeakyReLU(0.2),
        nn.Conv2d(128, 1, 4, 1, 1),
    )  # fmt: skip
    net.load_state_dict({n.removeprefix(BESIDE): w for n, w in weights.items()})
    return net


def test_domain_correction(host: SDHost, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch, domain_correction, "noised")
    starts = recorded(monkeypatch, DomainCorrection, "beside")
    settings = {**FAST, "prompts": 0, "steps": 4, "warmup": 0.25, "discriminator_lr": 2e-3, "surgery": 0.8}
    patch = DomainCorrection(**settings)(host, Request(target=(STAR,), toward=(MOON,), keep=(RING,)))
    judge = patches(starts[0][1])
    adam = torch.optim.Adam(judge.parameters(), lr=2e-3, betas=(0.5, 0.999))
    naive = Naive(host, parameters(host, "xattn", ""), lr=1e-3, clip=1.0)
    keeping = [*moons(PROMPTS), *(p.replace("star", "ring") for p in PROMPTS)]
    points, conflicts = [at for _, at in calls], 0

    def clean(at: Any, out: Tensor) -> Tensor:
        alpha, sigma = host.noise(at.t)
        return (at.x - sigma * out) / alpha if host.prediction == "epsilon" else alpha * at.x - sigma * out

    def score(latents: Tensor, label: float) -> Tensor:
        return bce(latents, torch.full_like(latents, label))

    for k in range(4):
        at = points.pop(0)
        anchor = clean(at, old(host, at.x, at.t, moons(of(PROMPTS, at))))
        target = clean(at, own(host, naive.net, at.x, at.t, of(PROMPTS, at)))
        if k >= 1:
            real_fake = judge(torch.cat([anchor, target]))  # batch statistics are those of both
            stays = points.pop(0)
            keep = mse_loss(own(host, naive.net, stays.x, stays.t, of(keeping, stays)), learnt(host, stays))
            g, h = naive.gradients(score(judge(target), 0.0)), naive.gradients(keep)
            for n in g:
                dot = (g[n] * h[n]).sum()
                if dot < 0:
                    g[n], conflicts = g[n] - 0.8 * dot / h[n].square().sum() * h[n], conflicts + 1
        adam.zero_grad()
        real_fake = judge(torch.cat([anchor, target.detach()]))
        (score(real_fake[:2], 0.0) + score(real_fake[2:], 1.0)).backward()
        adam.step()
        if k >= 1:
            naive.step(g)
    assert conflicts > 0
    assert not points
    naive.agrees(patch)


@pytest.mark.parametrize(("side", "levels"), [(2, 1), (4, 2), (8, 3), (16, 4), (64, 4), (128, 4)])
def test_the_discriminator_fits_all_latents(side: int, levels: int) -> None:
    net = domain_correction.discriminator(16, side).to_empty(device="cpu")
    assert net(torch.zeros(2, 16, side, side)).shape[:2] == (2, 1)
    assert sum(isinstance(m, nn.Conv2d) for m in net) <= 1 + levels


# -- ANT -------------------------------------------------------------------------------------------------


def objective(host: SDHost, net: Any, late: Any, early: Any, **w: float) -> Tensor:
    """In the network's own output, whatever it predicts."""

    def of_part(at: Any, sign: float) -> Tensor:
        prompts, none = of(PROMPTS, at), [""] * len(at)
        null, cond = old(host, at.x, at.t, none), old(host, at.x, at.t, prompts)
        goal = null + sign * w["eta"] * (cond - null)
        mine = own(host, net, at.x, at.t, prompts)
        return mse_loss(mine, goal) + w["keep"] * mse_loss(own(host, net, at.x, at.t, none), null)

    return of_part(late, -1) + w["first"] * of_part(early, 1)


def ratio(host: SDHost, t: Tensor) -> Tensor:
    alpha, sigma = host.noise(t)
    return (sigma / alpha).flatten()


def middle(host: SDHost) -> float:
    """sigma / alpha between the second and the third of four steps."""
    return float(torch.cat([ratio(host, s.t) for s in host.walk(["star"], [0], Sampling(steps=4))])[1:3].mean())


def test_ant(host: SDHost, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch, ANT, "_objective")
    weights = {"eta": 0.9, "keep": 0.5, "first": 0.7}
    method = ANT(**FAST, eta=0.9, keep_weight=0.5, early_weight=0.7, early=middle(host), groups=2, mask_prompts=2,
                 mask_points=2)  # fmt: skip
    patch = method(host, Request(target=(STAR,)))
    names, points = parameters(host, "full", ""), [args[3:5] for args, _ in calls]

    scout, masks = Naive(host, names, lr=0.0), dict.fromkeys(names, True)
    for _ in range(4):
        sums = {n: torch.zeros_like(p) for n, p in scout.trained.items()}
        for late, early in (points.pop(0), points.pop(0)):
            for n, g in scout.gradients(objective(host, scout.net, late, early, **weights)).items():
                sums[n] = sums[n] + g
        for n, g in sums.items():
            sizes = g.abs().flatten().sort(descending=True).values
            masks[n] = masks[n] & (g.abs() >= sizes[round(0.5 * len(sizes)) - 1])
    naive = Naive(host, names, lr=1e-3)
    for late, early in points:
        loss = objective(host, naive.net, late, early, **weights)
        naive.step({n: g * masks[n] for n, g in naive.gradients(loss).items()})
    naive.agrees(patch, ties=6)  # of 64,796
    assert all(bool((ratio(host, early.t) > method.early).all()) for _, early in points)
    assert all(bool((ratio(host, late.t) < method.early).all()) for late, _ in points)
    shared = sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
    assert 0 < shared < 0.5


def test_every_second_walk_of_ant_turns_away_after_its_early_steps(host: SDHost) -> None:
    method = ANT(**FAST, eta=0.9, early=middle(host))
    context = ant.Prepared(prompts=PROMPTS, cond=host.encode(PROMPTS), null=host.encode([""]))
    late, early = method._walk(host, context, torch.tensor([0, 1]), torch.Generator().manual_seed(3))
    assert len(late) == len(early) == 4
    both = ant.Visited.cat([early, late])
    for row, strength in ((0, 1.0), (1, -0.9)):
        at = both[both.row == row]
        at = at[at.t.argsort(descending=True)]
        alpha, sigma = host.noise(at.t)
        sign = torch.where(ratio(host, at.t) > method.early, 1.0, strength).view(-1, 1, 1, 1)
        x0 = at.x0_null + 2.0 * sign * (at.x0_cond - at.x0_null)
        noise = (at.x - alpha * x0) / sigma
        assert torch.allclose(at.x[1:], (alpha[1:] * x0[:-1] + sigma[1:] * noise[:-1]), atol=1e-3)
    assert host.guide is None


def test_ant_without_masks_trains_all_and_in_low_rank(host: SDHost) -> None:
    trace = Trace()
    method = ANT(**FAST, share=1.0, rank=1, early=middle(host))
    patch = method(host, Request(target=(STAR, MOON)), trace=trace)
    assert any(".resnets." in n for n in patch.deltas)
    assert trace.forwards["denoiser"] == 4 * 2 * 2 + 3 * 2 * 4  # one walk, three steps


def test_ant_says_so_where_no_step_is_late(host: SDHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ANT, "_early", lambda self, host, t: torch.ones(len(t), 1, 1, 1, dtype=torch.bool))
    with pytest.raises(BadRequest, match="walk of 4"):
        ANT(**FAST)(host, Request(target=(STAR,)))


# -- what they share -------------------------------------------------------------------------------------


def test_drawn_pictures_are_what_sampling_draws(host: SDHost) -> None:
    pictures = draw(host, ["star", "moon"], 3, torch.Generator().manual_seed(1), steps=4, guidance=2.0, batch=2)
    assert pictures.row.tolist() == [0, 1, 0]
    seeds = torch.randint(2**31, (3,), generator=torch.Generator().manual_seed(1)).tolist()
    images = host.sample(["star", "moon", "star"], seeds, Sampling(steps=4, guidance=2.0))
    assert torch.allclose(host.pixels(pictures.x0), images, atol=1e-3)
    at = noised(host, pictures, 5, torch.Generator().manual_seed(2))
    assert sorted(at.row.tolist()) in ([0, 0, 0, 1, 1], [0, 0, 0, 0, 1])
    alpha, sigma = host.noise(at.t)
    assert float(((at.x - alpha * at.x0) / sigma).std()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ConceptAblation(objective="x"), "model, noise"),  # type: ignore[arg-type]
        (lambda: ConceptAblation(pictures=0), "pictures"),
        (lambda: SalUn(share=0.0), "share"),
        (lambda: AllButOne(train="kv"), "xattn"),  # type: ignore[arg-type]
        (lambda: ANT(rank=2), "share=1"),
        (lambda: ANT(early=0.5), "early"),
        (lambda: DomainCorrection(warmup=1.0), "warmup"),
    ],
)
def test_parameters_are_checked(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        make()
