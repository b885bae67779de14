"""Unlearning by labels and weights, against the papers' formulas written once more: one step of each by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from digits_fixture import REQUEST, accuracy, class_split, classifier, digits, regressor, sample_split
from palimpsest.core.patch import Patch
from palimpsest.core.samples import Split
from palimpsest.train.classify import augmented, gone, joined, seen, stream, wrong_labels
from palimpsest.unlearn.blindspot import Blindspot
from palimpsest.unlearn.boundary_expanding import BoundaryExpanding
from palimpsest.unlearn.boundary_shrink import BoundaryShrink
from palimpsest.unlearn.finetune import FineTune
from palimpsest.unlearn.flat import FLAT, conjugate, variational
from palimpsest.unlearn.gaussian_amnesiac import GaussianAmnesiac
from palimpsest.unlearn.gradient_ascent import GradientAscent
from palimpsest.unlearn.gradient_collision import GradientCollision
from palimpsest.unlearn.l1_sparse import L1Sparse
from palimpsest.unlearn.neg_grad_plus import NegGradPlus
from palimpsest.unlearn.random_label import RandomLabel
from palimpsest.unlearn.salun import SalUn

ONE = {"steps": 1, "lr": 0.1, "batch": 10_000, "augment": "none"}


def small() -> Split:
    """Class 3 against some of the others."""
    split = class_split()
    return Split(forget=split.forget[:40], retain=split.retain[:90])


def slopes(loss: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
    """Gradients of a loss at the untouched network."""
    net = copy.deepcopy(classifier().root).requires_grad_(True)
    loss(net).backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in net.named_parameters()}


def assert_step(patch: Patch, gradients: dict[str, Tensor], lr: float = 0.1) -> None:
    """The patch is one step of plain descent."""
    assert any(bool(g.any()) for g in gradients.values())
    for name, g in gradients.items():
        moved = patch.deltas[name].dense(g.shape) if name in patch.deltas else torch.zeros_like(g)
        torch.testing.assert_close(moved, -lr * g, atol=2e-6, rtol=2e-3, msg=lambda m, name=name: f"{name}: {m}")


def clipped(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    norm = float(torch.cat([g.reshape(-1) for g in gradients.values()]).norm())
    return {n: g * min(1.0, 1 / norm) for n, g in gradients.items()}


def test_fine_tune() -> None:
    split = small()
    x, y = split.retain.pixels(), split.retain.labels
    assert_step(FineTune(**ONE)(classifier(), REQUEST, data=split), slopes(lambda net: F.cross_entropy(net(x), y)))


def test_gradient_ascent_climbs() -> None:
    split = small()
    x, y = split.forget.pixels(), split.forget.labels
    expect = clipped(slopes(lambda net: -F.cross_entropy(net(x), y)))
    assert_step(GradientAscent(**ONE)(classifier(), REQUEST, data=split), expect)


def test_neg_grad_plus_weighs_both() -> None:
    split = small()
    f, r = split.forget, split.retain

    def loss(net: nn.Module) -> Tensor:
        return 0.3 * F.cross_entropy(net(r.pixels()), r.labels) - 0.7 * F.cross_entropy(net(f.pixels()), f.labels)

    patch = NegGradPlus(**ONE, beta=0.3)(classifier(), REQUEST, data=split)
    assert_step(patch, clipped(slopes(loss)))


def _labels(split: Split) -> Tensor:
    from palimpsest.train.randomness import generator

    return wrong_labels(split, 10, generator(0, "labels"))


def test_random_label() -> None:
    split = small()
    f, r, wrong = split.forget, split.retain, _labels(split)

    def loss(net: nn.Module) -> Tensor:
        return F.cross_entropy(net(f.pixels()), wrong) + 0.5 * F.cross_entropy(net(r.pixels()), r.labels)

    assert_step(RandomLabel(**ONE, keep_weight=0.5)(classifier(), REQUEST, data=split), slopes(loss))


def test_wrong_labels_are_wrong_and_never_forgotten_ones() -> None:
    train = digits()[0]
    lost = torch.isin(train.labels, torch.tensor([3, 5]))
    split = Split(forget=train[lost], retain=train[~lost])
    wrong = wrong_labels(split, 10, torch.Generator().manual_seed(0))
    assert set(wrong.tolist()) == set(range(10)) - {3, 5}
    counts = torch.bincount(wrong, minlength=10)[[0, 1, 2, 4, 6, 7, 8, 9]].float()
    assert counts.max() / counts.min() < 2, "the labels are not uniform"
    mixed = sample_split()
    wrong = wrong_labels(mixed, 10, torch.Generator().manual_seed(0))
    assert not bool((wrong == mixed.forget.labels).any())
    assert len(wrong.unique()) == 10


def test_classes_that_are_gone() -> None:
    assert gone(class_split(4), 10).tolist() == [4]
    assert gone(sample_split(), 10).tolist() == []
    alone = class_split(4)
    assert gone(replace(alone, retain=alone.retain[:0]), 10).tolist() == [4]


def test_salun_moves_the_salient_half_only() -> None:
    split = small()
    f, r, wrong = split.forget, split.retain, _labels(split)
    saliency = slopes(lambda net: F.cross_entropy(net(f.pixels()), f.labels))
    sizes = torch.cat([g.abs().reshape(-1) for g in saliency.values()])
    median = sizes.sort(descending=True).values[round(0.5 * len(sizes)) - 1]

    def loss(net: nn.Module) -> Tensor:
        return F.cross_entropy(net(f.pixels()), wrong) + 2 * F.cross_entropy(net(r.pixels()), r.labels)

    expect = {n: g * (saliency[n].abs() >= median) for n, g in slopes(loss).items()}
    patch = SalUn(**ONE, alpha=2.0)(classifier(), REQUEST, data=split)
    assert_step(patch, expect)
    moved = sum(int((d.dense(expect[n].shape) != 0).sum()) for n, d in patch.deltas.items())
    assert moved <= 0.51 * len(sizes)
    assert "rank" not in SalUn().parameters()  # a low-rank change moves all weights


def test_l1_sparse_fades_out() -> None:
    split = small()
    x, y = split.retain.pixels(), split.retain.labels

    def loss(gamma: float) -> Callable[[nn.Module], Tensor]:
        return lambda net: F.cross_entropy(net(x), y) + gamma * sum(p.abs().sum() for p in net.parameters())  # type: ignore[return-value]

    patch = L1Sparse(**ONE, gamma=0.02)(classifier(), REQUEST, data=split)
    assert_step(patch, slopes(loss(0.02)))
    pulls = {k: L1Sparse(**{**ONE, "steps": k}, gamma=0.02)(classifier(), REQUEST, data=split) for k in (1, 2)}
    weight = dict(classifier().root.named_parameters())["body.0.weight"]
    shrunk = {k: float((weight + p.deltas["body.0.weight"].dense(weight.shape)).abs().sum()) for k, p in pulls.items()}
    first = float(weight.abs().sum()) - shrunk[1]
    assert 0 < shrunk[1] - shrunk[2] < 2.9 * first, "the second pull is half of the first, plus momentum"


def test_boundary_shrink_goes_to_the_nearest_other_class() -> None:
    split = small()
    x, y = split.forget.pixels().requires_grad_(True), split.forget.labels
    net = copy.deepcopy(classifier().root)
    F.cross_entropy(net(x), y).backward()
    assert x.grad is not None
    moved = (x.detach() + 0.2 * x.grad.sign()).clamp(0, 1)
    goals = [
        max((float(v), k) for k, v in enumerate(row) if k != int(c))[1] for row, c in zip(net(moved), y, strict=True)
    ]
    assert len(set(goals)) > 1
    expect = slopes(lambda net: F.cross_entropy(net(x.detach()), torch.tensor(goals)))
    assert_step(BoundaryShrink(**ONE, epsilon=0.2)(classifier(), REQUEST, data=split), expect)


def test_boundary_expanding_trains_a_shadow_class_and_drops_it() -> None:
    split = small()
    method = BoundaryExpanding(**ONE)
    shadow = method.free(512, 0)
    assert float(shadow["shadow.weight"].abs().max()) <= 512**-0.5
    x = split.forget.pixels()

    def loss(net: nn.Module) -> Tensor:
        h = net.body(x)
        wide = torch.cat([net.head(h), (h @ shadow["shadow.weight"] + shadow["shadow.bias"])[:, None]], 1)
        return -wide.log_softmax(1)[:, 10].mean()

    patch = method(classifier(), REQUEST, data=split)
    assert_step(patch, slopes(loss))
    assert set(patch.deltas) <= {n for n, _ in classifier().root.named_parameters()}


@pytest.mark.parametrize("divergence", ["kl", "js", "pearson", "tv"])
def test_flat(divergence: str) -> None:
    split = small()
    x, y = split.forget.pixels(), split.forget.labels
    with torch.no_grad():
        runner_up = classifier().logits(x).topk(2).indices
    template = torch.where(runner_up[:, 0] == y, runner_up[:, 1], runner_up[:, 0])

    def loss(net: nn.Module) -> Tensor:
        p = net(x).softmax(1)
        bad, good = p[torch.arange(len(y)), y], p[torch.arange(len(y)), template]
        return {
            "kl": lambda: torch.exp(bad - 1) - good,
            "js": lambda: -torch.log(2 - 2 / (1 + torch.exp(-bad))) - torch.log(2 / (1 + torch.exp(-good))),
            "pearson": lambda: bad**2 / 4 + bad - good,
            "tv": lambda: torch.tanh(bad) / 2 - torch.tanh(good) / 2,
        }[divergence]().mean()

    assert_step(FLAT(**ONE, divergence=divergence)(classifier(), REQUEST, data=split), slopes(loss))  # type: ignore[arg-type]


@pytest.mark.parametrize("divergence", ["kl", "js", "pearson", "tv"])
def test_flat_rewards_the_template_and_punishes_the_label(divergence: str) -> None:
    p = torch.linspace(0, 1, 20)
    assert bool((variational(p, divergence).diff() > 0).all())  # type: ignore[arg-type]
    assert bool((conjugate(variational(p, divergence), divergence).diff() > 0).all())  # type: ignore[arg-type]


def test_gradient_collision_sums_cosines_of_pairs() -> None:
    split = small()
    f, r = split.forget[:4], split.retain
    split = Split(forget=f, retain=r)

    def loss(net: nn.Module) -> Tensor:
        pulls = []
        for i in range(4):  # four mini-batches of one sample: their order does not matter
            out = F.cross_entropy(net(f.pixels([i])), f.labels[[i]])
            pulls.append(
                torch.cat([g.reshape(-1) for g in torch.autograd.grad(out, list(net.parameters()), create_graph=True)])
            )
        pairs = [F.cosine_similarity(pulls[i], pulls[j], dim=0) for i in range(4) for j in range(i)]
        return F.cross_entropy(net(r.pixels()), r.labels) + 3 * torch.stack(pairs).mean()

    gradients = slopes(loss)
    patch = GradientCollision(**ONE, weight=3.0, parts=4)(classifier(), REQUEST, data=split)
    for name, g in gradients.items():  # Adam's first step: the sign, where the slope is not tiny
        clear = g.abs() > 1e-3 * g.abs().max()
        step = patch.deltas[name].dense(g.shape)
        assert bool((step[clear].sign() == -g[clear].sign()).all()), name


def test_gaussian_amnesiac_draws_from_the_values_it_knows() -> None:
    host, split = regressor()
    values = torch.cat([split.forget.labels, split.retain.labels])
    drawn = GaussianAmnesiac().ready(host, split, 0)
    assert len(drawn) == len(split.forget)
    assert abs(float(drawn.mean() - values.mean())) < 4 * float(values.std()) / len(drawn) ** 0.5
    assert 0.7 < float(drawn.std() / values.std()) < 1.3
    net = copy.deepcopy(host.root).requires_grad_(True)
    f, r = split.forget, split.retain
    loss = 0.5 * (net(r.pixels())[:, 0] - r.labels).square().mean() + (net(f.pixels())[:, 0] - drawn).square().mean()
    loss.backward()
    patch = GaussianAmnesiac(**{**ONE, "lr": 1e-3}, keep_weight=0.5)(host, REQUEST, data=split)
    assert_step(patch, {n: p.grad for n, p in net.named_parameters() if p.grad is not None}, lr=1e-3)


def test_blindspot_follows_the_blind_model_where_it_forgets() -> None:
    host, split = regressor()
    method = Blindspot(steps=80, lr=1e-3, batch=64, augment="none", weight=0.1, blind_epochs=6.0)
    blind = method.ready(host, split, 0)
    assert blind.fingerprint() != host.fingerprint()
    patch = method(host, REQUEST, data=split)
    x = split.forget.pixels()
    with torch.no_grad():
        led, old = blind.logits(x), host.logits(x)
        assert float((old - led).abs().mean()) < 10, "the blind model left the range of the values"
        with patch.applied(host):
            new = host.logits(x)
            kept = (host.logits(split.retain.pixels())[:, 0] - split.retain.labels).square().mean()
    assert float((new - led).square().mean()) < 0.5 * float((old - led).square().mean())
    assert float(kept) < 0.5 * float(split.retain.labels.var())


def test_rows_of_a_step_depend_on_seed_and_step_alone_and_cover_all() -> None:
    rows = [stream(10, 4, 0, k, "a").tolist() for k in range(5)]
    assert sorted(r for part in rows for r in part) == sorted(list(range(10)) * 2)
    assert stream(10, 4, 0, 3, "a").tolist() == rows[3]
    assert [stream(10, 4, 1, k, "a").tolist() for k in range(5)] != rows
    assert [stream(10, 4, 0, k, "b").tolist() for k in range(5)] != rows


def test_augmentation_shifts_and_flips() -> None:
    images = torch.rand(200, 3, 8, 8)
    draws = torch.Generator().manual_seed(0)
    assert augmented(images, "none", draws) is images
    for how in ("shift", "flip"):
        out = augmented(images, how, draws)
        same = (out == images).flatten(1).all(1).float().mean()
        mirrored = (out == images.flip(3)).flatten(1).all(1).float().mean()
        assert 0.02 < float(same) < 0.25
        assert (float(mirrored) > 0) == (how == "flip")
        assert bool((out.flatten(1).amin(1) >= images.flatten(1).amin(1)).all())


def test_features_are_what_the_head_reads() -> None:
    host, x = classifier(), digits()[1].pixels(slice(0, 5))
    with torch.no_grad():
        features, logits = seen(host, x)
        torch.testing.assert_close(host.root.head(features), logits)
        torch.testing.assert_close(logits, host.logits(x))


def test_joining_keeps_groups_only_where_all_have_them() -> None:
    split = class_split()
    both = joined(split.forget, split.retain)
    assert len(both) == len(digits()[0])
    assert len(both.groups) == len(both)
    assert joined(replace(split.forget, groups=()), split.retain).groups == ()


def test_a_class_goes_and_the_others_stay() -> None:
    split, (_, test) = class_split(), digits()
    rest = test[test.labels != 3]
    for method in (SalUn(steps=40, lr=3e-3, augment="none"), BoundaryShrink(steps=50, lr=1e-3, augment="none")):
        with method(classifier(), REQUEST, data=split).applied(classifier()):
            assert accuracy(classifier(), split.forget) < 10
            assert accuracy(classifier(), rest) > 85
