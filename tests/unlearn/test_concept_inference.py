"""Concept inference: finds the concepts that a class rests on, then poisons the samples that carry them."""

from __future__ import annotations

import torch
from sklearn.cluster import KMeans
from torch.nn import functional as F

from digits_fixture import class_split, classifier
from palimpsest.unlearn.concept_inference import ConceptInference, bottleneck, clusters
from unlearn.steps import features


def test_concepts_lead_to_the_class() -> None:
    split, host = class_split(), classifier()
    draws = torch.Generator().manual_seed(0)
    points = F.normalize(features(split["retain"]), dim=1)
    found = clusters(points, 9, draws)
    ours = float((1 - (points @ found.T).amax(1)).mean())
    theirs = KMeans(9, n_init=3, random_state=0).fit(points.numpy())
    centres = F.normalize(torch.tensor(theirs.cluster_centers_), dim=1)
    assert ours < 1.1 * float((1 - (points @ centres.T).amax(1)).mean())
    scores, weights = torch.randn(200, 6, generator=draws), torch.randn(4, 6, generator=draws)
    torch.testing.assert_close(bottleneck(scores, scores @ weights.T + 3, ridge=1e-6), weights, atol=1e-3, rtol=1e-3)
    ready = ConceptInference(share=0.25).ready(host, split, 0)
    assert len(ready.rows) == round(0.25 * len(split["forget"]))
    assert not bool((ready.labels == 3).any())
    targeted = ConceptInference(share=0.25, poison="targeted").ready(host, split, 0)
    assert len(targeted.labels.unique()) == 1
    with torch.no_grad():
        chosen = host.logits(split["forget"].pixels(ready.rows))[:, 3].mean()
        assert float(chosen) > float(host.logits(split["forget"].pixels())[:, 3].mean()), (
            "poisons the class's own samples"
        )
