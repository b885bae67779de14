"""The untouched model as its own judge, on a denoiser whose every answer is known in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from hosts_fixtures import BUILDERS, host_of
from palimpsest.core.concept import Concept
from palimpsest.core.delta import Dense
from palimpsest.core.errors import BadRequest
from palimpsest.core.fingerprint import fingerprint
from palimpsest.core.host import Cond
from palimpsest.core.patch import Patch
from palimpsest.core.sampling import Sampling
from palimpsest.probes.evaluators import Judge, classes_of, decide, judge, judges_for
from palimpsest.probes.own_judge import NAME, OwnJudge, Race, _behind
from palimpsest.probes.plan import plan

SIDE, SPREAD = 4, 0.3
WORDS = ("star", "moon", "circle", "house", "red", "green")
STAR, MOON, CIRCLE, HOUSE = (Concept(name=w, prompts=(f"a {w}",)) for w in WORDS[:4])
RED, GREEN = (Concept(name=w, kind="attribute", prompts=(f"a {w} thing",)) for w in WORDS[4:])


class Gaussians:
    """Knows each word as a picture around one of its own, and everything else as one around nothing.

    Given x = alpha x0 + sigma noise with x0 ~ N(mean, SPREAD^2), it predicts x0's posterior mean: the best denoiser.
    """

    name, prediction, knows, guide = "gaussians", "epsilon", None, None
    defaults = Sampling(steps=20, guidance=3.0)
    device = torch.device("cpu")

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(4)
        self.root = nn.Module()
        self.root.register_buffer("means", torch.randn(len(WORDS), 3 * SIDE * SIDE, generator=generator) * 0.5)
        self.rows = 0

    def mean(self, *words: str) -> Tensor:
        """What a picture of the words is around."""
        means = self.root.get_buffer("means")
        return torch.stack([means[WORDS.index(w)] for w in words]).sum(0).view(3, SIDE, SIDE)

    def fingerprint(self) -> str:
        return fingerprint(self.root)

    def parts(self, role: str) -> dict[str, nn.Module]:
        return {}

    def encode(self, prompts: Sequence[str]) -> Cond:
        rows = [[float(w in p.split()) for w in WORDS] for p in prompts]
        return Cond(states=torch.tensor(rows)[:, None], lengths=torch.ones(len(prompts), dtype=torch.long))

    def times(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n, generator=generator)

    def noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return (1 - t).view(-1, 1, 1, 1), t.view(-1, 1, 1, 1)

    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        self.rows += len(x)
        alpha, sigma = self.noise(t)
        mean = (cond.states[:, 0] @ self.root.get_buffer("means")).view(-1, 3, SIDE, SIDE)
        wide = SPREAD**2 + 0.25 * (cond.states.sum((1, 2)) == 0).float().view(-1, 1, 1, 1) * 2  # none: anything at all
        return mean + alpha * wide / (alpha**2 * wide + sigma**2) * (x - alpha * mean)

    def latents(self, images: Tensor) -> Tensor:
        return images * 4 - 2


def pictures(host: Gaussians, *shown: Sequence[str], n: int = 6, seed: int = 0) -> Tensor:
    """n pictures of each of these, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.stack([host.mean(*words) for words in shown]).repeat_interleave(n, 0)
    return (means + SPREAD * torch.randn(means.shape, generator=generator) + 2) / 4


def own(host: Any, *concepts: Concept, **race: Any) -> OwnJudge:
    return OwnJudge(host, concepts or (STAR, MOON, CIRCLE, RED, GREEN), Race(**race))


def seen(found: Judge, images: Tensor) -> list[list[str]]:
    present = decide(found.evaluator, found.read(images))
    return [[c for c, on in zip(found.evaluator.classes, row, strict=True) if on] for row in present.tolist()]


def test_it_sees_what_is_there_of_each_kind_and_nothing_where_nothing_is() -> None:
    host = Gaussians()
    found = own(host)
    assert isinstance(found, Judge)
    read = seen(found, pictures(host, ("star",), ("moon", "green"), ("house",), n=4))
    assert read[:4] == [["object:star"]] * 4
    assert read[4:8] == [["object:moon", "attribute:green"]] * 4
    assert read[8:] == [[]] * 4  # a house is none of the candidates, and must not become the nearest of them
    chances = found.read(pictures(host, ("star",), n=4))
    assert bool(((chances >= 0) & (chances <= 1)).all())
    assert (chances[:, :3] > 0.5).sum(1).tolist() == [1] * 4


def test_chances_are_those_of_the_definition() -> None:
    """No candidate drops out; every trial written out."""
    host = Gaussians()
    found = own(host, STAR, MOON, forwards=12, error=1e-300, least=2)
    images = pictures(host, ("star",), ("circle",), ("moon", "star"), n=2)
    times = host.times(4096, torch.Generator().manual_seed(0)).sort().values
    rows = []
    for image in host.latents(images):
        relative = np.zeros((4, 3))
        for trial, said in enumerate(["{}", "an image of {}", "a photo of {}", "a picture of {}"]):
            t = times[int(found.race.shares[trial] * 4096)]  # 12 forwards are 4 trials of 2 candidates and none
            noise = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(trial))
            x = (1 - t) * image[None] + t * noise
            errors = [
                float((host.denoise(x, t[None], host.encode([said.format(name)])) - image).double().square().mean())
                for name in ("star", "moon", "")
            ]
            relative[trial] = np.array(errors) / errors[2] * [1, 1, 1.01]
        leader = relative.mean(0).argmin()
        apart = relative - relative[:, [leader]]
        pooled = sum(apart[:, i].var(ddof=1) for i in range(3) if i != leader) / 2
        z = apart.mean(0) / np.sqrt(pooled / 4)
        p = norm.cdf(-z)
        p[leader] = norm.cdf(np.sort(z)[1])  # against its nearest rival
        rows.append(p[:2])
    assert np.allclose(found.read(images).numpy(), np.array(rows), atol=1e-4)


@pytest.mark.parametrize(("above", "expected"), [(0.005, [[True, False]]), (0.015, [[False, False]])])
def test_the_right_name_may_gain_nothing_and_lose_a_little(above: float, expected: list[list[bool]]) -> None:
    found = own(Gaussians(), STAR, MOON)

    def errors(x0: Tensor, run: Tensor, trial: int) -> Tensor:
        jitter = 1e-4 * torch.tensor([1.0, -1.0, 0.0]) * (-1) ** trial
        return torch.tensor([[1 + above, 1.2, 1.0]]).double() + jitter

    found._errors = errors  # type: ignore[method-assign]
    assert decide(found.evaluator, found.outcome(torch.zeros(1, 3, SIDE, SIDE))[0]).tolist() == expected


def test_who_drops_out_first_is_surely_behind() -> None:
    """Two looks written out: t of the paired difference against its limit at the level shared by the rivals."""
    past = torch.tensor([[[0.5, 0.6, 0.55], [0.9, 1.1, 1.0], [0.7, 0.5, 0.62], [1.0, 1.0, 1.0]]], dtype=torch.float64)
    z, freedom = _behind(past, torch.ones(1, 4, dtype=torch.bool))
    apart = (past[0, 1:] - past[0, :1]).numpy()
    pooled = apart.var(1, ddof=1).mean()
    assert z[0].tolist() == pytest.approx([0.0, *(apart.mean(1) / np.sqrt(pooled / 3))])
    assert freedom.tolist() == [[6]]
    z, freedom = _behind(past, torch.tensor([[True, False, True, False]]))
    assert z[0].isinf().tolist() == [False, True, False, True]
    assert freedom.tolist() == [[2]]


def test_rows_depend_on_their_own_picture_alone_and_repeat() -> None:
    host = Gaussians()
    images = pictures(host, ("star",), ("moon", "red"), ("circle",), n=7)
    whole = own(host).read(images)
    assert torch.equal(whole, own(host).read(images))
    assert torch.allclose(torch.cat([own(host).read(images[i : i + 1]) for i in range(len(images))]), whole, atol=1e-6)


def test_the_race_saves_forwards_and_names_the_same_winners() -> None:
    host = Gaussians()
    concepts = (STAR, MOON, CIRCLE, HOUSE)
    images = pictures(host, ("star",), ("moon",), ("circle",), ("house",), n=10)
    longest = own(host, *concepts, forwards=5 * 40, error=1e-300)
    raced = own(host, *concepts, forwards=5 * 40)
    (full, all_of_them), (quick, spent) = (j.outcome(host.latents(images)) for j in (longest, raced))
    assert all_of_them.tolist() == [200] * 40
    assert float(spent.float().mean()) < 60
    assert int(spent.max()) <= 200
    assert torch.equal(full.argmax(1), quick.argmax(1))


@pytest.mark.parametrize("forwards", [1, 30, 64])
def test_forwards_are_counted_and_kept_to(forwards: int) -> None:
    host = Gaussians()
    found = own(host, forwards=forwards)
    images = pictures(host, ("star", "red"), ("house",), n=9)
    _, spent = found.outcome(host.latents(images))
    assert host.rows == int(spent.sum())
    columns = 5 + 2  # three objects, two attributes, and none of either
    assert int(spent.max()) <= found.most == max(forwards, 5 * columns)
    assert int(spent.min()) >= 2 * columns


def test_pictures_under_a_patch_are_refused() -> None:
    host = Gaussians()
    found = own(host)
    images = pictures(host, ("star",), n=1)
    change = Patch(base=host.fingerprint(), deltas={"means": Dense(value=torch.ones(len(WORDS), 3 * SIDE * SIDE))})
    with change.applied(host), pytest.raises(BadRequest, match="untouched"):
        found.read(images)
    host.guide = lambda: None  # type: ignore[assignment]
    with pytest.raises(BadRequest, match="untouched"):
        found.read(images)
    host.guide = None
    handle = host.root.register_forward_hook(lambda *_: None)
    with pytest.raises(BadRequest, match="untouched"):
        found.read(images)
    handle.remove()
    assert found.read(images).shape == (1, 5)


def test_who_it_is_follows_from_the_model_and_every_setting() -> None:
    host, other = Gaussians(), Gaussians()
    first = own(host).evaluator
    assert (first.name, first.judges_itself, first.threshold) == (NAME, True, 0.501)
    assert first.classes == ("object:star", "object:moon", "object:circle", "attribute:red", "attribute:green")
    assert first == own(other).evaluator
    other.root.get_buffer("means").add_(1)
    changed = [own(other), own(host, forwards=65), own(host, seed=1), own(host, STAR, MOON)]
    changed.append(own(host, replace(STAR, name="one star"), MOON, CIRCLE, RED, GREEN))
    assert len({first.sha256, *(j.evaluator.sha256 for j in changed)}) == 6


def test_kinds_come_from_labels_where_these_say_them() -> None:
    left = Concept(name="left", kind="attribute", labels=("position:left",))
    found = own(Gaussians(), left, RED, Concept(name="Star Wars: A New Hope"))
    assert found.evaluator.classes == ("position:left", "attribute:red", "object:Star Wars: A New Hope")
    assert [kind.tolist() for kind in found.kinds] == [[0, 3], [1, 4], [2, 5]]
    assert classes_of(found.evaluator, Concept(name="Star Wars: A New Hope")) == [2]
    assert classes_of(found.evaluator, left) == [0]


def test_it_is_loaded_by_what_it_says_of_itself() -> None:
    host = host_of("sd")
    found = judge("own:30", [STAR, MOON], host)
    assert found.source == "own:30"
    assert judge(found.source, [STAR, MOON], host).evaluator == found.evaluator
    with pytest.raises(BadRequest, match="audited model"):
        judge("own", [STAR, MOON])
    for odd in ("own:", "own:many", "own:0"):
        with pytest.raises(BadRequest, match="forwards"):
            judge(odd, [STAR], host)
    with pytest.raises(BadRequest, match="at least one concept"):
        judge("own", [], host)


@pytest.mark.parametrize("family", BUILDERS)
def test_every_family_judges_itself(family: str) -> None:
    host = host_of(family)
    found = judge("own:9", [STAR, RED], host)
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    read = found.read(images)
    assert read.shape == (3, 2)
    assert bool(read.isfinite().all())
    assert torch.equal(read, found.read(images.clone()))
    assert found.features(images).shape == (3, 16 * host.channels)


def test_models_without_a_world_bring_themselves() -> None:
    from palimpsest.core.concept import Request

    host = host_of("sd")
    chosen = plan(host, Request(target=(STAR,), keep=(MOON,)), prompts_per_concept=1, seeds=1, steps=7, guidance=3.0)
    (found,) = judges_for(host, chosen)
    assert found.source == "own:14"  # what drawing takes: seven steps of two forwards
    assert len(found.evaluator.classes) == len(chosen.concepts)
    assert judges_for(host) == []


def test_candidates_are_told_apart_by_their_names_alone() -> None:
    """Everybody's templates; prompts of its own only where the name is no word for the model."""
    poetic = Concept(name="moon", prompts=("the moon over a lake at midnight",))
    code = Concept(name="toy 1", prompts=("a photo of sks dog", "sks dog"))
    found = own(host_of("sd"), STAR, poetic, code)
    said = [tuple(found._cond(trial).texts) for trial in range(3)]
    assert said[0] == ("star", "moon", "a photo of sks dog", "")
    assert said[1] == ("an image of star", "an image of moon", "sks dog", "an image of")
    assert said[2] == ("a photo of star", "a photo of moon", "a photo of sks dog", "a photo of")


def test_a_model_that_heeds_no_word_sees_nothing() -> None:
    host = Gaussians()
    host.root.get_buffer("means").zero_()
    host.encode = lambda prompts: Gaussians.encode(host, [""] * len(prompts))  # type: ignore[method-assign]
    assert seen(own(host), torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))) == [[]] * 3
