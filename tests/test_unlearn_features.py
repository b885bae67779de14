"""Unlearning by features, importance and data, against the papers' formulas written once more."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.ensemble import IsolationForest
from torch import Tensor, nn
from torch.nn import functional as F

from digits_fixture import REQUEST, accuracy, class_split, classifier, digits, sample_split
from palimpsest.core.errors import BadRequest
from palimpsest.core.samples import Samples, Split
from palimpsest.core.trace import Trace
from palimpsest.ops.isolation_forest import isolation
from palimpsest.ops.surrogates import dead_leaves
from palimpsest.ops.unlearning_scores import adaptive_unlearning_score, normalised_unlearning_score
from palimpsest.train.classify import all_seen
from palimpsest.train.inner import system
from palimpsest.train.loop import TrainStep
from palimpsest.train.scratch import copied, recalibrate, reset
from palimpsest.train.trained import Trained
from palimpsest.unlearn.concept_inference import ConceptInference, bottleneck, clusters
from palimpsest.unlearn.datamodel_matching import DatamodelMatching, proxy
from palimpsest.unlearn.duck import DUCK
from palimpsest.unlearn.laf import LAF
from palimpsest.unlearn.prune_first import PruneFirst
from palimpsest.unlearn.retrain import Retrain
from palimpsest.unlearn.s3t import S3T, layer_groups, longest_prefix
from palimpsest.unlearn.scar import SCAR, distance, nearest, statistics
from palimpsest.unlearn.ssd import SSD
from palimpsest.unlearn.upcore import UPCORE


def small() -> Split:
    split = class_split()
    return Split(forget=split.forget[:40], retain=split.retain[:300])


def features(samples: Samples) -> Tensor:
    with torch.no_grad():
        return classifier().root.body(samples.pixels())


def test_duck_goes_to_the_nearest_wrong_centroid() -> None:
    split = small()
    kept, lost = features(split.retain), features(split.forget)
    goals = []
    for h in lost:
        best = (-2.0, torch.zeros(0))
        for k in set(range(10)) - {3}:
            centre = kept[split.retain.labels == k].mean(0)
            best = max(best, (float(F.cosine_similarity(h, centre, dim=0)), centre), key=lambda pair: pair[0])
        goals.append(best[1])
    method = DUCK(steps=1, lr=1e-3, batch=10_000, augment="none", forget_weight=2.0, keep_weight=0.5, temperature=3.0)
    torch.testing.assert_close(method.ready(classifier(), split, 0), torch.stack(goals))
    net = copy.deepcopy(classifier().root).requires_grad_(True)
    away = (1 - F.cosine_similarity(net.body(split.forget.pixels()), torch.stack(goals))).mean()
    (2 * away + 0.5 * F.cross_entropy(net(split.retain.pixels()) / 3, split.retain.labels)).backward()
    patch = method(classifier(), REQUEST, data=split)
    for name, p in net.named_parameters():  # Adam's first step is the sign of the slope
        assert p.grad is not None
        clear = p.grad.abs() > 1e-3 * p.grad.abs().max()
        step = patch.deltas[name].dense(p.shape)
        assert bool((step[clear].sign() == -p.grad[clear].sign()).all()), name


def test_duck_for_samples_never_goes_to_the_own_class() -> None:
    split = sample_split()
    goals = DUCK().ready(classifier(), split, 0)
    kept = features(split.retain)
    centres = torch.stack([kept[split.retain.labels == k].mean(0) for k in range(10)])
    chosen = torch.cdist(goals, centres).argmin(1)
    assert not bool((chosen == split.forget.labels).any())


def test_adaptive_unlearning_score() -> None:
    assert adaptive_unlearning_score(0.0, 0.9, 0.9) == 1
    assert math.isclose(adaptive_unlearning_score(0.5, 0.8, 0.9), 0.9 / 1.5)
    assert math.isclose(adaptive_unlearning_score(0.95, 0.88, 0.9, goal=0.9), 0.98 / 1.05)


def test_normalised_unlearning_score_punishes_attacks_that_are_wrong_as_those_that_are_right() -> None:
    assert normalised_unlearning_score(1.0, 0.5) == 1
    assert math.isclose(normalised_unlearning_score(0.9, 0.6), 0.45 + 0.4)
    assert normalised_unlearning_score(0.9, 0.6) == normalised_unlearning_score(0.9, 0.4)


@pytest.mark.parametrize("shrinkings", [1, 2])
def test_scar_distance(shrinkings: int) -> None:
    """Mean and covariance are of the roots; the mean is of unit norm, and so is what is measured."""
    split = small()
    h, labels = features(split.retain)[:, :12], split.retain.labels
    own = (h[labels == 5].double() + 1e-4).sqrt() * (h[labels == 5] > 0)  # features after a ReLU
    s = torch.zeros(12, 12).double()
    for row in own:
        s += torch.outer(row - own.mean(0), row - own.mean(0)) / (len(own) - 1)
    for _ in range(shrinkings):
        v1 = sum(s[i, i] for i in range(12)) / 12
        others = [s[i, j] for i in range(12) for j in range(12) if i != j and s[i, j] != 0]
        v2 = sum(others) / len(others)
        s = s + torch.tensor([[3 * (v1 if i == j else v2) for j in range(12)] for i in range(12)])
    s = s / s.diagonal().sqrt()[:, None] / s.diagonal().sqrt()[None]
    away = F.normalize((h[7].double() + 1e-4).sqrt() * (h[7] > 0), dim=0) - F.normalize(own.mean(0), dim=0)
    expect = away @ torch.linalg.solve(s, away)
    found = statistics(h, labels, 5, shrinkings=shrinkings)
    assert found is not None
    torch.testing.assert_close(distance(h[7:8], found)[0].double(), expect, rtol=1e-3, atol=1e-6)
    assert statistics(h, labels, 3, shrinkings=1) is None


def test_scar_goes_to_the_nearest_class_but_its_own() -> None:
    split = small()
    h, labels = features(split.retain)[:, :12], split.retain.labels
    of = partial(statistics, h, labels, shrinkings=2)
    classes = [k for k in range(10) if k != 3]
    every = torch.stack([distance(h, s) for k in classes if (s := of(k)) is not None], 1)
    every[labels[:, None] == torch.tensor(classes)] = torch.inf
    assert torch.equal(nearest(h, labels, of, classes), torch.tensor(classes)[every.argmin(1)])
    with pytest.raises(BadRequest, match="no class"):
        nearest(h, labels, of, [3])


def test_scar_distils_without_a_temperature() -> None:
    split, method = small(), SCAR(steps=1, batch=10_000, foreign=30, lr=1e-3, forget_weight=0.0)
    ready = method.ready(classifier(), split, 0)
    student = copied(classifier())
    with torch.no_grad():
        student.root.head.weight.mul_(0.5)  # a student that differs from its teacher
    x, n = ready.foreign.pixels(), len(ready.foreign)
    p, q = ready.answers.softmax(1), student.logits(x).softmax(1)
    expect = 5 * (p * (p / q).log()).sum() / n
    step = TrainStep(
        host=student, request=REQUEST, index=0, total=1, batch=n, seed=0, data=split, context=ready, trace=Trace(),
        trained=Trained(student.root, ["head.weight"]),
    )  # fmt: skip
    assert float(method.loss(step)) == pytest.approx(float(expect), rel=1e-4)
    assert float(expect) > 0.1


def test_scar_forgets_without_retained_pictures_and_without_the_forget_set() -> None:
    split, (_, test) = class_split(), digits()
    host, rest = classifier(), test[test.labels != 3]
    for method in (SCAR(steps=60, lr=2e-3), SCAR(steps=100, lr=2e-3, forget_set=False)):
        with method(host, REQUEST, data=split).applied(host):
            assert accuracy(host, split.forget) < 50
            assert accuracy(host, rest) > 90
    with pytest.raises(BadRequest, match="whole classes"):
        SCAR(forget_set=False, steps=1)(host, REQUEST, data=sample_split())


def test_scar_reads_no_forgotten_picture_without_the_forget_set() -> None:
    split = small()
    other = replace(split, forget=replace(split.forget, images=255 - split.forget.images))
    one, two = (SCAR(steps=2, forget_set=False)(classifier(), REQUEST, data=d) for d in (split, other))
    assert one.deltas.keys() == two.deltas.keys()
    for name, delta in one.deltas.items():
        shape = classifier().root.state_dict()[name].shape
        assert torch.equal(delta.dense(shape), two.deltas[name].dense(shape))


def test_dead_leaves_are_seeded_and_varied() -> None:
    one, two = (dead_leaves(20, (16, 24), generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == (20, 3, 16, 24)
    assert float(one.float().std()) > 30
    beside = (one[..., 1:].float() - one[..., :-1].float()).abs().mean()
    assert float(beside) < 0.5 * float((one[1:].float() - one[:-1].float()).abs().mean()), "neighbours are alike"


def test_laf_reads_no_label() -> None:
    split = small()
    blind = Split(
        forget=replace(split.forget, labels=torch.full_like(split.forget.labels, 9)),
        retain=replace(split.retain, labels=split.retain.labels.flip(0)),
    )
    method = LAF(steps=3, lr=1e-3, vae_steps=5)
    one, two = (method(classifier(), REQUEST, data=d) for d in (split, blind))
    for name, delta in one.deltas.items():
        shape = classifier().root.state_dict()[name].shape
        assert torch.equal(delta.dense(shape), two.deltas[name].dense(shape))
    assert not any(name.startswith("head") for name in one.deltas)


def test_laf_leaves_the_forgotten_features() -> None:
    split = class_split()
    with LAF(steps=60, lr=1e-3)(classifier(), REQUEST, data=split).applied(classifier()):
        assert accuracy(classifier(), split.forget) < 50
        assert accuracy(classifier(), split.retain) > 90


def test_laf_autoencoders_know_their_own_features_best() -> None:
    split = class_split()
    kept, lost = LAF(vae_steps=200).ready(classifier(), split, 0)
    z_kept, z_lost = features(split.retain), features(split.forget)
    assert float(kept(z_kept)[0].mean()) < float(kept(z_lost)[0].mean())
    assert float(lost(z_lost)[0].mean()) < float(lost(z_kept)[0].mean())


def test_selective_synaptic_dampening() -> None:
    split = small()

    def importance(samples: Samples) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for i in range(len(samples)):
            net = copy.deepcopy(classifier().root).requires_grad_(True)
            F.cross_entropy(net(samples.pixels([i])), samples.labels[[i]]).backward()
            for n, p in net.named_parameters():
                assert p.grad is not None
                found[n] = found.get(n, torch.zeros_like(p)) + p.grad.square() / len(samples)
        return found

    split = Split(forget=split.forget[:10], retain=split.retain[:30])
    both = Samples(
        images=torch.cat([split.forget.images, split.retain.images]),
        labels=torch.cat([split.forget.labels, split.retain.labels]),
        names=split.forget.names + split.retain.names,
    )
    f, d = importance(split.forget), importance(both)
    patch = SSD(select=3.0, strength=0.7, batch=1)(classifier(), REQUEST, data=split)
    assert patch.deltas
    for name, w in classifier().root.named_parameters():
        beta = (0.7 * d[name] / f[name]).nan_to_num(1.0).clamp(max=1)
        expect = torch.where(f[name] > 3 * d[name], beta * w, w) - w
        moved = patch.deltas[name].dense(w.shape) if name in patch.deltas else torch.zeros_like(w)
        torch.testing.assert_close(moved, expect.detach(), atol=1e-6, rtol=1e-3)


def test_dampening_selects_a_share_of_the_weights_that_goes_with_the_share_of_the_data() -> None:
    whole = small()
    split = Split(forget=whole.forget[:10], retain=whole.retain[:30])
    patch = SSD(batch=8)(classifier(), REQUEST, data=split)
    weights = dict(classifier().root.named_parameters())
    moved = sum(int((d.dense(weights[n].shape) != 0).sum()) for n, d in patch.deltas.items())
    share = moved / sum(w.numel() for w in weights.values())
    # A quarter of the data is forgotten; zero weights and ratios below one stay.
    assert 0.5 * math.log1p(25) / 100 < share <= math.log1p(25) / 100 + 1e-3


def test_isolation_scores_agree_with_scikit_learn() -> None:
    draws = torch.Generator().manual_seed(0)
    points = torch.cat([torch.randn(300, 5, generator=draws), 4 + 3 * torch.randn(15, 5, generator=draws)])
    ours = isolation(points, trees=200, generator=draws)
    theirs = -torch.tensor(
        IsolationForest(n_estimators=200, random_state=0).fit(points.numpy()).score_samples(points.numpy())
    )
    assert float(torch.corrcoef(torch.stack([ours.double(), theirs]))[0, 1]) > 0.97
    assert float((ours - theirs).abs().mean()) < 0.03
    assert float(ours[300:].min()) > float(ours[:300].median())
    assert bool((isolation(torch.zeros(5, 2), trees=3, generator=draws) < 0.51).all())


def test_upcore_gives_the_core_to_the_unlearner() -> None:
    split = small()
    odd = replace(split.forget, images=torch.cat([255 - split.forget.images[:4], split.forget.images[4:]]))
    split = replace(split, forget=odd)
    scores = isolation(all_seen(classifier(), odd)[0], trees=100, generator=torch.Generator().manual_seed(0))
    core = replace(split, forget=odd[scores.argsort()[:36].sort().values])
    patch = UPCORE(share=0.1, unlearner="finetune", settings="steps=2")(classifier(), REQUEST, data=split)
    assert patch.provenance["method"] == "unlearn/upcore"
    settings = "steps=2 lr=0.01 augment=none"
    patch = UPCORE(share=0.1, settings=settings)(classifier(), REQUEST, data=split)
    direct = system("gradient_ascent", settings, verb="unlearn", but="")(classifier(), REQUEST, data=core)
    for name, delta in direct.deltas.items():
        shape = classifier().root.state_dict()[name].shape
        assert torch.equal(delta.dense(shape), patch.deltas[name].dense(shape))


def test_settings_of_inner_systems_are_read_or_refused() -> None:
    found = system("salun", "steps=7 lr=0.5 augment=shift", verb="unlearn", but="")
    assert found.parameters() | {"steps": 7, "lr": 0.5, "augment": "shift"} == found.parameters()
    for settings, words in (("pace=3", "no parameter"), ("steps=many", "takes a int"), ("steps", "name=value")):
        with pytest.raises(BadRequest, match=words):
            system("salun", settings, verb="unlearn", but="")
    with pytest.raises(BadRequest, match="itself"):
        system("upcore", "", verb="unlearn", but="unlearn/upcore")


def test_prune_first_keeps_the_mask_while_it_unlearns() -> None:
    split = class_split()
    host = classifier()
    weights = {n: p for n, p in host.root.named_parameters() if p.ndim >= 2}
    cut = torch.cat([w.abs().reshape(-1) for w in weights.values()]).quantile(0.6)
    patch = PruneFirst(sparsity=0.6, settings="steps=30 augment=none lr=0.02")(host, REQUEST, data=split)
    with patch.applied(host):
        for name, w in weights.items():
            gone = float((w == 0).float().mean())
            expect = float(((w - patch.deltas[name].dense(w.shape)).abs() < cut).float().mean())
            assert abs(gone - expect) < 0.01, name
        assert accuracy(host, split.retain) > 95


def test_retrain_starts_afresh_and_never_sees_the_forget_set() -> None:
    split = class_split()
    method = Retrain(epochs=4, lr=0.05, augment="none")
    other = replace(split, forget=replace(split.forget, images=255 - split.forget.images))
    one, two = (method(classifier(), REQUEST, data=d) for d in (split, other))
    host = classifier()
    state = host.root.state_dict()
    assert all(torch.equal(one.deltas[n].dense(t.shape), two.deltas[n].dense(t.shape)) for n, t in state.items())
    with one.applied(host):
        assert accuracy(host, split.forget) == 0
        assert accuracy(host, split.retain) > 95


def test_reset_and_recalibration() -> None:
    student, split = copied(classifier()), class_split()
    reset(student, 0)
    weight = student.root.body[4].weight
    assert float(weight.abs().max()) <= (16 * 9) ** -0.5
    assert abs(float(weight.std()) * 3**0.5 * 12 - 1) < 0.05
    recalibrate(student, split.retain, seed=0, batches=4, batch=10_000)
    norm = student.root.body[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        out = student.root.body[0](split.retain.pixels())
    torch.testing.assert_close(norm.running_mean, out.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(norm.running_var, out.var((0, 2, 3)), atol=1e-5, rtol=1e-3)
    assert norm.momentum == 0.1
    assert not norm.training


def test_s3t_is_exact() -> None:
    train = digits()[0]
    chosen = torch.tensor([g in ("hand7", "hand9") for g in train.groups])
    split = Split(forget=train[chosen], retain=train[~chosen])
    method = S3T(slices=3, epochs=2, rank=4)
    one = method(classifier(), REQUEST, data=split)
    shuffled = split.retain[torch.randperm(len(split.retain), generator=torch.Generator().manual_seed(1))]
    two = method(
        classifier(),
        REQUEST,
        data=Split(forget=replace(split.forget, images=255 - split.forget.images), retain=shuffled),
    )
    assert one.deltas.keys() == two.deltas.keys()
    for name, delta in one.deltas.items():
        for key, t in delta.tensors().items():
            assert torch.equal(t, two.deltas[name].tensors()[key])
    touched = {method._slice(g) for g in ("hand7", "hand9")}
    assert len(one.deltas) == len(longest_prefix(3, touched))  # one layer a slice
    with pytest.raises(BadRequest, match="retrain"):
        method(classifier(), REQUEST, data=replace_groups(class_split()))


def replace_groups(split: Split) -> Split:
    return Split(forget=replace(split.forget, groups=()), retain=replace(split.retain, groups=()))


def test_s3t_learns_from_what_is_left() -> None:
    train = digits()[0]
    chosen = torch.tensor([g == "hand7" for g in train.groups])
    split = Split(forget=train[chosen], retain=train[~chosen])
    host = classifier()
    patch = S3T(slices=3, epochs=10, rank=0, lr=1e-2, augment="none", fresh=True)(host, REQUEST, data=split)
    with patch.applied(host):
        assert accuracy(host, split.retain) > 60


def test_longest_prefix_of_cyclic_sequences() -> None:
    assert longest_prefix(5, {0}) == [1, 2, 3, 4]
    assert longest_prefix(5, {1, 2}) == [3, 4, 0]
    assert longest_prefix(4, {0, 2}) == [1]
    assert longest_prefix(3, {0, 1, 2}) == []
    groups = layer_groups(classifier(), 2)
    assert groups == [["head.weight", "body.4.weight"], ["body.0.weight"]]


def test_datamodel_matching_predicts_and_matches() -> None:
    split, host = class_split(), classifier()
    kept, labels = features(split.retain), split.retain.labels
    w, b = proxy(kept, labels, 10, 1e-3)
    spread = kept.std(0).mean()
    w, b = (w * spread).requires_grad_(True), b.clone().requires_grad_(True)
    loss = F.cross_entropy(kept / spread @ w + b, labels) + 1e-3 * (w.square().sum() + b.square().sum())
    assert max(float(g.abs().max()) for g in torch.autograd.grad(loss, [w, b])) < 1e-3, "the proxy is no optimum"
    method = DatamodelMatching(steps=80, lr=1e-3)
    goal = method.ready(host, split, 0)
    assert float((goal.forget.argmax(1) == 3).float().mean()) < 0.05
    assert float((goal.retain.argmax(1) == goal.kept.labels).float().mean()) > 0.98
    with method(host, REQUEST, data=split).applied(host), torch.no_grad():
        after = host.logits(split.forget.pixels())
    assert float((after - goal.forget).square().mean()) < 0.3 * float(
        (host.logits(split.forget.pixels()) - goal.forget).square().mean()
    )


def test_concepts_lead_to_the_class() -> None:
    split, host = class_split(), classifier()
    draws = torch.Generator().manual_seed(0)
    points = F.normalize(features(split.retain), dim=1)
    found = clusters(points, 9, draws)
    ours = float((1 - (points @ found.T).amax(1)).mean())
    theirs = KMeans(9, n_init=3, random_state=0).fit(points.numpy())
    centres = F.normalize(torch.tensor(theirs.cluster_centers_), dim=1)
    assert ours < 1.1 * float((1 - (points @ centres.T).amax(1)).mean())
    scores, weights = torch.randn(200, 6, generator=draws), torch.randn(4, 6, generator=draws)
    torch.testing.assert_close(bottleneck(scores, scores @ weights.T + 3, ridge=1e-6), weights, atol=1e-3, rtol=1e-3)
    ready = ConceptInference(share=0.25).ready(host, split, 0)
    assert len(ready.rows) == round(0.25 * len(split.forget))
    assert not bool((ready.labels == 3).any())
    targeted = ConceptInference(share=0.25, poison="targeted").ready(host, split, 0)
    assert len(targeted.labels.unique()) == 1
    with torch.no_grad():
        chosen = host.logits(split.forget.pixels(ready.rows))[:, 3].mean()
        assert float(chosen) > float(host.logits(split.forget.pixels())[:, 3].mean()), "poisons the class's own samples"
