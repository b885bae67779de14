"""S3T: exact unlearning; adapters are trained slice by slice, and those that saw a deleted sample are left out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from digits_fixture import REQUEST, accuracy, class_split, classifier, digits
from palimpsest.core.errors import BadRequest
from palimpsest.core.pictures import Material
from palimpsest.unlearn.s3t import S3T, layer_groups, longest_prefix


def test_s3t_is_exact() -> None:
    train = digits()[0]
    chosen = torch.tensor([g in ("hand7", "hand9") for g in train.columns["identity"]])
    split = Material({"forget": train[chosen], "retain": train[~chosen]})
    method = S3T(slices=3, epochs=2, rank=4)
    one = method(classifier(), REQUEST, data=split)
    shuffled = split["retain"][torch.randperm(len(split["retain"]), generator=torch.Generator().manual_seed(1))]
    two = method(
        classifier(),
        REQUEST,
        data=Material({"forget": replace(split["forget"], images=255 - split["forget"].images), "retain": shuffled}),
    )
    assert one.deltas.keys() == two.deltas.keys()
    for name, delta in one.deltas.items():
        for key, t in delta.tensors().items():
            assert torch.equal(t, two.deltas[name].tensors()[key])
    touched = {method._slice(g) for g in ("hand7", "hand9")}
    assert len(one.deltas) == len(longest_prefix(3, touched))  # one layer a slice
    with pytest.raises(BadRequest, match="retrain"):
        method(classifier(), REQUEST, data=unnamed(class_split()))


def unnamed(split: Material) -> Material:
    """Without a word of who wrote what."""
    return Material({name: replace(pictures, columns={}) for name, pictures in split.items()})


def test_s3t_learns_from_what_is_left() -> None:
    train = digits()[0]
    chosen = torch.tensor([g == "hand7" for g in train.columns["identity"]])
    split = Material({"forget": train[chosen], "retain": train[~chosen]})
    host = classifier()
    patch = S3T(slices=3, epochs=10, rank=0, lr=1e-2, augment="none", fresh=True)(host, REQUEST, data=split)
    with patch.applied(host):
        assert accuracy(host, split["retain"]) > 60


def test_longest_prefix_of_cyclic_sequences() -> None:
    assert longest_prefix(5, {0}) == [1, 2, 3, 4]
    assert longest_prefix(5, {1, 2}) == [3, 4, 0]
    assert longest_prefix(4, {0, 2}) == [1]
    assert longest_prefix(3, {0, 1, 2}) == []
    groups = layer_groups(classifier(), 2)
    assert groups == [["head.weight", "body.4.weight"], ["body.0.weight"]]
