"""Blindspot: what a regressor forgets, it answers as a model would that has hardly seen anything."""

from __future__ import annotations

import torch

from digits_fixture import REQUEST, regressor
from palimpsest.unlearn.blindspot import Blindspot


def test_blindspot_follows_the_blind_model_where_it_forgets() -> None:
    host, split = regressor()
    method = Blindspot(steps=80, lr=1e-3, batch=64, augment="none", weight=0.1, blind_epochs=6.0)
    blind = method.ready(host, split, 0)
    assert blind.fingerprint() != host.fingerprint()
    patch = method(host, REQUEST, data=split)
    x = split["forget"].pixels()
    with torch.no_grad():
        led, old = blind.logits(x), host.logits(x)
        assert float((old - led).abs().mean()) < 10, "the blind model left the range of the values"
        with patch.applied(host):
            new = host.logits(x)
            kept = (host.logits(split["retain"].pixels())[:, 0] - split["retain"].labels).square().mean()
    assert float((new - led).square().mean()) < 0.5 * float((old - led).square().mean())
    assert float(kept) < 0.5 * float(split["retain"].labels.var())
