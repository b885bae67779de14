"""Batches, augmentation, labels and copies of classifiers: what their trainings share."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from digits_fixture import class_split, classifier, digits, sample_split
from palimpsest.core.pictures import Material
from palimpsest.train.classify import augmented, gone, joined, stream, wrong_labels
from palimpsest.train.scratch import copied, recalibrate, reset


def test_reset_and_recalibration() -> None:
    student, split = copied(classifier()), class_split()
    reset(student, 0)
    weight = student.root.body[4].weight
    assert float(weight.abs().max()) <= (16 * 9) ** -0.5
    assert abs(float(weight.std()) * 3**0.5 * 12 - 1) < 0.05
    recalibrate(student, split["retain"], seed=0, batches=4, batch=10_000)
    norm = student.root.body[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        out = student.root.body[0](split["retain"].pixels())
    torch.testing.assert_close(norm.running_mean, out.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(norm.running_var, out.var((0, 2, 3)), atol=1e-5, rtol=1e-3)
    assert norm.momentum == 0.1
    assert not norm.training


def test_wrong_labels_are_wrong_and_never_forgotten_ones() -> None:
    train = digits()[0]
    lost = torch.isin(train.labels, torch.tensor([3, 5]))
    split = Material({"forget": train[lost], "retain": train[~lost]})
    wrong = wrong_labels(split, 10, torch.Generator().manual_seed(0))
    assert set(wrong.tolist()) == set(range(10)) - {3, 5}
    counts = torch.bincount(wrong, minlength=10)[[0, 1, 2, 4, 6, 7, 8, 9]].float()
    assert counts.max() / counts.min() < 2, "the labels are not uniform"
    mixed = sample_split()
    wrong = wrong_labels(mixed, 10, torch.Generator().manual_seed(0))
    assert not bool((wrong == mixed["forget"].labels).any())
    assert len(wrong.unique()) == 10


def test_classes_that_are_gone() -> None:
    assert gone(class_split(4), 10).tolist() == [4]
    assert gone(sample_split(), 10).tolist() == []
    alone = class_split(4)
    assert gone(Material({**alone, "retain": alone["retain"][:0]}), 10).tolist() == [4]


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
        features, logits = host.read(x)
        torch.testing.assert_close(host.root.head(features), logits)
        torch.testing.assert_close(logits, host.logits(x))


def test_joining_keeps_identities_only_where_all_have_them() -> None:
    split = class_split()
    both = joined(split["forget"], split["retain"])
    assert len(both) == len(digits()[0])
    assert len(both.columns["identity"]) == len(both)
    assert joined(replace(split["forget"], columns={}), split["retain"]).columns == {}
    assert joined(split["forget"], split["retain"][:0]).columns == split["forget"].columns
