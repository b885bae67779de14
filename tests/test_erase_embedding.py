"""Systems in the space of text and features, against their papers' formulas written out naively."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hosts_fixtures import SEEDS, sd3_pipeline, sd_pipeline
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.core.host import Step
from palimpsest.core.patch import Patch
from palimpsest.core.sampling import Sampling
from palimpsest.core.trace import Trace
from palimpsest.erase.concept_steerers import ConceptSteerers
from palimpsest.erase.invdiff import InvDiff, group_means, part
from palimpsest.erase.latent_directions import LatentDirections, added
from palimpsest.erase.safree import SAFREE, damped
from palimpsest.erase.trce import TRCE
from palimpsest.erase.uce_debias import UCEDebias
from palimpsest.hosts.sd import SDHost
from palimpsest.ops.anchors import without
from palimpsest.ops.subspace import away, basis, onto
from palimpsest.train.loop import TrainStep
from palimpsest.train.sparse_autoencoder import fit, largest, median
from palimpsest.train.trained import Trained

STAR, MOON, HOUSE = Concept(name="star"), Concept(name="moon"), Concept(name="house")
PROMPTS = ["a red star", "house"]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> SDHost:
    torch.manual_seed(0)
    return SDHost(sd_pipeline(tmp_path_factory.mktemp("sd")), name="small sd")


def first_step(host: SDHost, prompts: list[str] = PROMPTS, steps: int = 10) -> Step:
    return next(host.walk(prompts, SEEDS[: len(prompts)], Sampling(steps=steps, guidance=3.0)))


def projector(vectors: Tensor) -> Tensor:
    e = vectors.T.double()
    return e @ torch.linalg.pinv(e.T @ e) @ e.T


def end(host: SDHost, text: str) -> Tensor:
    cond = host.encode([text])
    return cond.states[0, int(cond.lengths[0]) - 1]


# -- subspaces --------------------------------------------------------------------------------------------


def test_projections_are_those_of_the_pseudo_inverse() -> None:
    draws = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, 7, generator=draws)
    vectors = torch.cat([vectors, vectors.sum(0, keepdim=True)])  # rank 3
    x, p = torch.randn(5, 7, generator=draws), projector(vectors).float()
    rows = basis(vectors)
    assert rows.shape == (3, 7)
    torch.testing.assert_close(onto(x, rows), x @ p.T, atol=1e-5, rtol=0)
    torch.testing.assert_close(away(x, rows), x - x @ p.T, atol=1e-5, rtol=0)
    with pytest.raises(BadRequest, match="span nothing"):
        basis(torch.zeros(2, 3))


# -- SAFREE -----------------------------------------------------------------------------------------------


def test_safree_filters_as_the_paper_does(host: SDHost) -> None:
    method, prompt = SAFREE(until=0.5), "a red star on moon"
    words, step = prompt.split(), first_step(host, [prompt])
    concept = projector(torch.stack([end(host, "star"), end(host, "ring")])).float()
    ends = torch.stack([end(host, " ".join([*words[:j], "!", *words[j + 1 :]])) for j in range(len(words))])
    far = (ends - ends @ concept.T).norm(dim=1)
    states = step.cond.states[0]
    safe = states @ projector(ends).float().T
    safe = safe - safe @ concept.T
    expected = states.clone()
    for j in range(len(words)):
        if far[j] >= 1.01 * (far.sum() - far[j]) / (len(words) - 1):
            begin, stop = (int(host.encode([" ".join(words[:k])]).lengths[0]) - 1 for k in (j, j + 1))
            expected[begin:stop] = safe[begin:stop]
    assert 0 < int((expected != states).any(1).sum()) < len(states)
    rows = basis(torch.stack([end(host, "star"), end(host, "ring")]))
    found, until = method.filtered(step, rows)
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=1e-3)
    n = int(step.cond.lengths[0])
    beta = 1 - torch.cosine_similarity(safe[:n], states[:n], dim=-1).mean()
    last = torch.round(5 * torch.sigmoid(5 * (10 * beta - 5.333)))  # until 0.5 of 10 steps
    assert float(until[0]) * 5 == pytest.approx(float(last))


def test_safree_filters_the_first_steps_only(host: SDHost) -> None:
    method = SAFREE(until=0.2, middle=-100.0, scales=(1.0, 1.0))  # always the full share: steps 0, 1 and 2 of 10
    rule = method.guide(host, Request(target=(STAR,)))
    moved = []
    for step in host.walk(PROMPTS, SEEDS[:2], Sampling(steps=10, guidance=3.0)):
        null, cond = step.x0(step.null, step.cond)
        moved.append(not torch.allclose(rule(step), null + 3.0 * (cond - null), atol=1e-4))
    assert moved == [True] * 3 + [False] * 7


def test_safree_damps_low_frequencies_that_the_filter_raised() -> None:
    features = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    found = damped(features, 1, 0.2)
    assert torch.equal(found[[0, 2]], features[[0, 2]])
    safe, own, out = (torch.fft.fft2(f) for f in (features[1], features[2], found[1]))
    factors = (out / safe).real
    for c in range(2):
        for i in range(4):
            for j in range(4):
                hit = {i, j} <= {0, 3} and safe[c, i, j].abs() > own[c, i, j].abs()
                mirrored = {i, j} <= {0, 1} and i + j > 0  # the real part spreads onto the mirrored frequency
                if not mirrored and (i, j) in ((0, 0), (1, 2), (2, 2), (2, 1)):
                    assert float(factors[c, i, j]) == pytest.approx(0.2 if hit else 1.0, abs=1e-3)


def test_safree_reads_the_padding_only_where_asked(host: SDHost) -> None:
    step, rows = first_step(host, ["star"]), basis(torch.stack([end(host, "star")]))
    plain, _ = SAFREE().filtered(step, rows)
    wide, _ = SAFREE(padding=True).filtered(step, rows)
    n = int(step.cond.lengths[0])
    assert torch.equal(plain[0, n - 1 :], step.cond.states[0, n - 1 :])
    assert not torch.equal(wide[0, n - 1 :], step.cond.states[0, n - 1 :])
    assert torch.equal(wide[0, : n - 1], plain[0, : n - 1])


# -- TRCE -------------------------------------------------------------------------------------------------


def test_trce_first_stage_is_the_papers_solve(host: SDHost) -> None:
    method = TRCE(steps=0, ridge=0.1, keep_weight=0.3, weights=(0.0, 1.0, 0.0, 0.5))
    concept = Concept(name="star", prompts=("a red star", "star on blue"))
    found = method.closed_form(
        host, [("a red star", "a red"), ("star on blue", "on blue")], Request(target=(concept,), keep=(HOUSE,))
    )
    layers = {**host.parts("cross_key"), **host.parts("cross_value")}
    kept = host.encode(["", "house", *(t.format("house") for t in _templates())]).states.flatten(0, 1).double()
    for name, layer in layers.items():
        w = layer.get_parameter("weight").detach().double()
        left, right = 0.1 * w, 0.1 * torch.eye(w.shape[1], dtype=torch.float64)
        for old, new in (("a red star", "a red"), ("star on blue", "on blue")):
            a, b = host.encode([old]), host.encode([new])
            for back, weight in ((1, 1.0), (2, 0.5)):
                e = a.states[0, int(a.lengths[0]) - back].double()
                v = b.states[0, int(b.lengths[0]) - back].double()
                left = left + weight / 2 * torch.outer(w @ v, e)
                right = right + weight / 2 * torch.outer(e, e)
        gram = kept.T @ kept / len(kept)
        expected = (left + 0.3 * w @ gram) @ torch.linalg.inv(right + 0.3 * gram) - w
        change = found[f"{name}.weight"].dense(w.shape).double()
        assert (change - expected).norm() <= 1e-4 * expected.norm()


def _templates() -> tuple[str, ...]:
    from palimpsest.ops.prompts import TEMPLATES

    return TEMPLATES["object"]


def test_trce_second_stage_is_the_papers_loss(host: SDHost) -> None:
    steering = TRCE(steps=1, batch=3, walks=2, walk_steps=4, eta=2.0, margin=0.5, preserve=7.0)
    pairs = [("a red star", "a red"), ("star", "")]
    poles = steering._poles(host, pairs, torch.Generator().manual_seed(3))
    assert len(poles.at) == 2 * 2  # the first half of four steps
    trained = Trained(host.root, steering.trains(host))
    request = Request(target=(STAR,))
    with torch.no_grad():
        poles = steering.prepare(host, request, data=poles, seed=0, trace=Trace())
        step = TrainStep(
            host=host, request=request, index=0, total=1, batch=3, seed=5, data=None, context=poles, trace=Trace(),
            trained=trained,
        )  # fmt: skip
        found = steering.loss(step)
        draws = step.generator()
        rows = torch.randint(len(poles.at), (3,), generator=draws).tolist()
        stays = torch.randint(len(poles.stay or ()), (3,), generator=draws).tolist()
        null, turned = host.encode([""]), 0.0
        for r in rows:
            at = poles.at[torch.tensor([r])]
            old, new = (host.encode([p]) for p in pairs[int(at.row)])
            alpha, sigma = host.noise(at.t)
            noise = {}
            for key, cond in (("old", old), ("new", new), ("null", null)):
                noise[key] = (at.x - alpha * host.denoise(at.x, at.t, cond)) / sigma
            good = noise["new"] + 2.0 * (noise["new"] - noise["null"])
            bad = noise["old"] + 2.0 * (noise["old"] - noise["null"])
            for key in ("old", "null"):
                gap = (noise[key] - good).square().mean() - (noise[key] - bad).square().mean() + 0.5
                turned += max(0.0, float(gap)) / 2 / 3
    assert stays
    assert float(found) == pytest.approx(turned, rel=1e-3, abs=1e-5)  # nothing has moved yet, so nothing is to stay


def test_trce_leaves_the_name_out() -> None:
    assert without("a red star on blue", "star") == "a red on blue"
    assert without("star", "star") == ""
    assert without("something else", "star") == ""


# -- Concept Steerers -------------------------------------------------------------------------------------


def test_autoencoders_learn_sparse_sums() -> None:
    draws = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(12, 8, generator=draws), dim=1)
    codes = largest(torch.randn(2000, 12, generator=draws), 2)
    x = codes @ atoms + 3.0
    sae = fit(x, width=24, k=2, steps=600, lr=1e-2, batch=256, generator=torch.Generator().manual_seed(1))
    assert sae.explained(x) > 0.8
    assert int((sae.encode(x) > 0).sum(1).max()) == 2
    torch.testing.assert_close(sae.decoder.norm(dim=0), torch.ones(24))
    z = sae.encode(x[:3])
    torch.testing.assert_close(sae.decode(z), sae.bias + z @ sae.decoder.T)
    assert int((sae.encode(x, 24) > 0).sum(1).max()) > 2
    with pytest.raises(BadRequest, match="k in"):
        fit(x, width=4, k=5, steps=1, lr=1.0, batch=2, generator=draws)


def test_the_geometric_median_ignores_one_far_point() -> None:
    points = torch.cat([torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) * 0.1, torch.full((1, 3), 1e3)])
    assert float(median(points).norm()) < 0.2 < float(points.mean(0).norm())


def test_steering_moves_prompt_and_null_inside_the_encoder(host: SDHost) -> None:
    method = ConceptSteerers(strength=-0.7, steps=3, batch=16, k=4)
    patch = method(host, Request(target=(STAR, MOON)))
    (name, direction), *none = patch.hooks[0].tensors.items()
    assert not none
    assert name == "text_encoder.encoder.layers.1"  # round(10/12 of 3) = 2: the second block
    assert direction.shape == host.encode(["star"]).states[0].shape
    step = first_step(host)
    null, cond = method.steered(step, patch.hooks[0].tensors)
    for found, texts, sign in ((cond, PROMPTS, 1), (null, ["", ""], -1)):
        handle = host.root.get_submodule(name).register_forward_hook(
            lambda m, a, out, sign=sign: _shift(out, sign * -0.7 * direction)
        )
        expected = host.encode(texts).states
        handle.remove()
        torch.testing.assert_close(found.states, expected, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(found.states, host.encode(texts).states, atol=1e-3)


def _shift(output: Any, by: Tensor) -> Any:
    return output + by if isinstance(output, Tensor) else (output[0] + by, *output[1:])


# -- latent directions ------------------------------------------------------------------------------------


def test_directions_are_added_to_the_prompts_half_and_kept_in_the_patch(host: SDHost, tmp_path: Path) -> None:
    method = LatentDirections(steps=3, pictures=2, walk_steps=2, batch=2, strength=1.5)
    patch = method(host, Request(target=(STAR, MOON)))
    loaded = Patch.load(patch.save(tmp_path / "p.safetensors"))
    tensors = loaded.hooks[0].tensors
    assert sorted(tensors) == ["direction 0", "direction 1"]
    v = 1.5 * (tensors["direction 0"] + tensors["direction 1"])
    assert bool(v.any())
    step = first_step(host)
    with torch.no_grad():
        found = method.guide(host, Request(target=(STAR,)), tensors)(step)
        (null,) = step.x0(step.null)
        handle = host.denoiser.mid_block.register_forward_hook(lambda m, a, out: out + v)
        (cond,) = step.x0(step.cond)
        handle.remove()
    torch.testing.assert_close(found, null + 3.0 * (cond - null), atol=1e-3, rtol=1e-3)


def test_a_direction_lowers_the_loss_it_is_trained_on(host: SDHost) -> None:
    trace = Trace()
    LatentDirections(steps=30, pictures=2, walk_steps=2, batch=16, lr=0.05)(host, Request(target=(STAR,)), trace=trace)
    losses = [v for _, name, v in trace.log if name == "loss"]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_directions_fit_other_picture_sizes(host: SDHost) -> None:
    v = torch.ones(16, 4, 4)
    with added(host, v, slice(None)), torch.no_grad():
        assert host.sample(["star"], [0], Sampling(steps=1, size=32)).isfinite().all()


def test_models_without_a_bottleneck_are_refused(tmp_path: Path) -> None:
    from palimpsest.hosts.sd3 import SD3Host

    torch.manual_seed(0)
    joint = SD3Host(sd3_pipeline(tmp_path, t5=False), name="small sd3")
    with pytest.raises(Unsupported, match="middle block; small sd3 has none"):
        LatentDirections()(joint, Request(target=(STAR,)))


# -- InvDiff ----------------------------------------------------------------------------------------------


def test_pictures_are_parted_by_their_loss() -> None:
    losses = torch.cat([torch.full((20,), 0.2), torch.full((5,), 1.0)])
    share = part(losses, 2, filled=0.0, steps=500, lr=0.01, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(share.sum(1), torch.ones(25))
    means = group_means(losses, share)
    assert float((means - means.mean()).abs().min()) > 0.25
    rare = int(means.argmax())
    assert float(share[20:, rare].min()) > 0.9
    assert float(share[:20, rare].max()) < 0.2


def test_empty_groups_of_a_batch_do_not_count() -> None:
    share = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0]])
    means = group_means(torch.tensor([2.0, 4.0]), share)
    torch.testing.assert_close(means, torch.tensor([(2.0 + 1.0) / 1.25, 4.0]))


def test_invdiff_learns_from_given_pictures(host: SDHost) -> None:
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    method, trace = InvDiff(steps=2, batch=4, groups=2, group_steps=20), Trace()
    patch = method(host, Request(target=(STAR,)), data=(images, ["a red star"] * 6), trace=trace)
    assert patch.deltas
    assert all(d.rank() == 4 for d in patch.deltas.values())
    assert trace.forwards["denoiser"] == 5 * 6 + 2 * 4  # five readings a picture, one a sample and step
    with pytest.raises(BadRequest, match="one for each"):
        method(host, Request(target=(STAR,)), data=(images, ["a red star"]))


# -- UCE's debiasing --------------------------------------------------------------------------------------


def test_debiasing_adds_up_what_is_missing(host: SDHost) -> None:
    """A judge that always sees the first attribute: each round adds (0.25 - 1, 0.75) once more."""
    seen: list[int] = []

    def judge(images: Tensor) -> Tensor:
        seen.append(len(images))
        return torch.zeros(len(images), dtype=torch.long)

    method = UCEDebias(
        attributes=("red", "blue"), ratios=(0.25, 0.75), rounds=2, per_round=3, walk_steps=2, ridge=0.2, keep_weight=0.5
    )
    patch = method(host, Request(target=(STAR,), keep=(HOUSE,)), data=judge)
    assert seen == [3, 3]
    c, k, red, blue = (_last(host, t) for t in ("star", "house", "red", "blue"))
    answer = c + 2 * (0.25 - 1) * red + 2 * 0.75 * blue
    for name, layer in {**host.parts("cross_key"), **host.parts("cross_value")}.items():
        w = layer.get_parameter("weight").detach().double()
        left = 0.2 * w + torch.outer(w @ answer, c) + 0.5 * torch.outer(w @ k, k)
        right = torch.outer(c, c) + 0.5 * torch.outer(k, k) + 0.2 * torch.eye(len(c), dtype=torch.float64)
        expected = left @ torch.linalg.inv(right) - w
        change = patch.deltas[f"{name}.weight"].dense(w.shape).double()
        assert (change - expected).norm() <= 1e-4 * expected.norm()


def _last(host: SDHost, text: str) -> Tensor:
    cond = host.encode([text])
    return cond.states[0, int(cond.lengths[0]) - 2].double()


def test_debiasing_leaves_what_is_balanced(host: SDHost) -> None:
    method = UCEDebias(rounds=5, per_round=4, walk_steps=2)
    trace = Trace()
    patch = method(host, Request(target=(STAR,)), data=lambda images: torch.arange(len(images)) % 2, trace=trace)
    assert not patch.deltas
    assert [name for _, name, _ in trace.log] == ["largest gap"]


# -- all --------------------------------------------------------------------------------------------------


def test_parameters_are_checked() -> None:
    bad: tuple[tuple[Any, dict[str, Any], str], ...] = (
        (SAFREE(), {"until": 2.0}, "share of 1"),
        (SAFREE(), {"alpha": -1.0}, "alpha"),
        (TRCE(), {"weights": (0, 0, 0, 0)}, "not all 0"),
        (TRCE(), {"walks": 0}, "walks"),
        (ConceptSteerers(), {"depth": 0.0}, "depth"),
        (ConceptSteerers(), {"k": 0}, "k is 0"),
        (LatentDirections(), {"pictures": 0}, "pictures"),
        (InvDiff(), {"groups": 1}, "groups"),
        (UCEDebias(), {"attributes": ("one",)}, "2 or more"),
        (UCEDebias(), {"ratios": (0.5, 0.2)}, "sum to"),
    )
    for method, change, words in bad:
        with pytest.raises(BadRequest, match=words):
            replace(method, **change)
