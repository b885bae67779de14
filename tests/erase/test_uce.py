"""UCE against its paper's formula, written once more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hosts_fixtures import host_of, sd_pipeline
from palimpsest.core.concept import Concept, Request
from palimpsest.core.host import Cond
from palimpsest.erase.rece import RECE
from palimpsest.erase.uce import UCE
from palimpsest.hosts.sd import SDHost
from palimpsest.ops.text_states import Tokens
from palimpsest.testing import check_method

STAR, MOON, HOUSE = Concept(name="star"), Concept(name="moon"), Concept(name="house")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> SDHost:
    torch.manual_seed(0)
    return SDHost(sd_pipeline(tmp_path_factory.mktemp("sd")), name="small sd")


def weights(host: Any) -> dict[str, Tensor]:
    layers = {**host.parts("cross_key"), **host.parts("cross_value")}
    return {f"{name}.weight": layer.weight.detach().double() for name, layer in layers.items()}


def states(host: Any, text: str, first: str) -> Tensor:
    """All states ("all"), those from the last token of the text on ("tail"), or that one alone ("last")."""
    cond = host.encode([text])
    if first == "all":
        return cond.states[0].double()
    i = int(cond.lengths[0]) - 2
    return (cond.states[0, i : i + 1] if first == "last" else cond.states[0, i:]).double()


def solve(w: Tensor, e: Tensor, v: Tensor, k: Tensor, keep_weight: float, ridge: float) -> Tensor:
    left = ridge * w + (w @ v.T) @ e + keep_weight * (w @ k.T) @ k
    return left @ torch.linalg.inv(e.T @ e + keep_weight * k.T @ k + ridge * torch.eye(w.shape[1]))


def changes(patch: Any, host: Any) -> dict[str, Tensor]:
    return {n: patch.deltas[n].dense(w.shape).double() for n, w in weights(host).items()}


@pytest.mark.parametrize("tokens", ["last", "tail", "all"])
def test_uce_is_the_papers_solve(host: SDHost, tokens: Tokens) -> None:
    request = Request(target=(STAR, MOON), keep=(HOUSE,), toward=(Concept(name="ring"),))
    patch = check_method(UCE(keep_weight=0.4, ridge=0.3, tokens=tokens), host, request)
    ring, k = states(host, "ring", tokens), states(host, "house", tokens)
    words = [states(host, t, tokens) for t in ("star", "moon")]
    cut = [min(len(w), len(ring)) for w in words]  # words of several tokens have shorter tails
    e = torch.cat([w[:m] for w, m in zip(words, cut, strict=True)])
    v = torch.cat([ring[:m] for m in cut])
    assert set(patch.deltas) == set(weights(host))
    for name, w in weights(host).items():
        expected = solve(w, e, v, k, 0.4, 0.3) - w
        assert (changes(patch, host)[name] - expected).norm() <= 1e-5 * expected.norm()  # states differ by batching


def test_uce_sends_the_concept_where_the_replacement_is(host: SDHost) -> None:
    patch = UCE(ridge=1e-4, tokens="last")(host, Request(target=(STAR,)))
    e, v = states(host, "star", "last"), states(host, "", "last")
    before = {n: (e - v) @ w.T for n, w in weights(host).items()}
    with patch.applied(host):
        for name, w in weights(host).items():
            old = w - changes(patch, host)[name]
            assert (e @ w.T - v @ old.T).norm() < 1e-3 * before[name].norm()


def test_uce_reads_the_concept_in_its_own_prompts(host: SDHost) -> None:
    inside = Concept(name="star", prompts=("a red star on blue",))
    alone = UCE()(host, Request(target=(Concept(name="star", prompts=("a red star",)),), toward=(MOON,)))
    patch = UCE()(host, Request(target=(inside,), toward=(MOON,)))
    for name, change in changes(alone, host).items():
        assert torch.allclose(change, changes(patch, host)[name], atol=1e-6)


def test_expanding_adds_sentences(host: SDHost) -> None:
    request = Request(target=(STAR,))
    plain, wide = UCE(tokens="last")(host, request), UCE(tokens="last", expand=True)(host, request)
    assert all(d.rank() == 1 for d in plain.deltas.values())
    assert all((d.rank() or 99) > 1 for d in wide.deltas.values())


def test_rece_leaves_less_to_revive_than_uce(host: SDHost) -> None:
    request = Request(target=(STAR,))
    c, left = states(host, "star", "last"), []
    for rounds in (0, 2):
        patch = RECE(rounds=rounds, tokens="last", mimic_ridge=0.1)(host, request)
        new = {n: w + changes(patch, host)[n] for n, w in weights(host).items()}
        a = torch.as_tensor(sum(w.T @ w for w in new.values())) + 0.1 * torch.eye(c.shape[1])
        b = torch.as_tensor(sum(new[n].T @ w for n, w in weights(host).items()))
        revived = c @ (torch.linalg.inv(a) @ b).T
        gap = torch.cat([(revived @ new[n].T - c @ w.T).flatten() for n, w in weights(host).items()])
        left.append(float(gap.norm()))
    assert left[1] > 1.1 * left[0]  # the best revived state is further from the concept


def last_words(cond: Cond) -> list[Tensor]:
    """The state of the first prompt's last word in each encoder."""
    lengths = {0: cond.lengths, **cond.further}
    return [cond.states[0, start + int(n[0]) - 2] for start, n in lengths.items()]


@pytest.mark.parametrize("family", ["sd3", "sd3_without_t5", "flux"])
def test_where_attention_is_joint_the_projections_of_text_are_edited(family: str) -> None:
    """Every encoder's last word of the target is read as the replacement's, and so is the pooled state."""
    joint: Any = host_of(family)
    star, ring = (joint.tokens([word]) for word in ("star", "ring"))
    patch = UCE(ridge=1e-6, tokens="last")(joint, Request(target=(STAR,), toward=(Concept(name="ring"),)))
    names = {name.rpartition("transformer.")[2] for name in patch.deltas}
    assert names == {"context_embedder.weight", "time_text_embed.text_embedder.linear_1.weight"}
    (tokens,), (pooled,) = (joint.parts(role).values() for role in ("text_projection", "pooled_projection"))
    old, new = (torch.stack(last_words(cond)) for cond in (star, ring))
    assert len(star.further) == (family == "sd3")
    wanted, wanted_pooled = tokens(new), pooled(ring.pooled)
    assert (tokens(old) - wanted).norm() > 0.1 * wanted.norm()
    with patch.applied(joint):
        assert (tokens(old) - wanted).norm() < 1e-2 * wanted.norm()
        assert (pooled(star.pooled) - wanted_pooled).norm() < 1e-2 * wanted_pooled.norm()
