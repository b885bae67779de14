"""Prompts, text states, neighbours and the parametrisations that all families share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from hosts_fixtures import sd_pipeline
from palimpsest.core.concept import Concept, Kind, Request
from palimpsest.hosts.parametrisation import from_x0, to_x0
from palimpsest.hosts.sd import SDHost
from palimpsest.ops import guidance, neighbours, prompts, text_states
from palimpsest.ops.anchors import anchored


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> SDHost:
    torch.manual_seed(0)
    return SDHost(sd_pipeline(tmp_path_factory.mktemp("sd")), name="small sd")


@pytest.mark.parametrize("kind", get_args(Kind))
def test_templates_exist_for_every_kind_and_end_with_the_name(kind: Kind) -> None:
    filled = prompts.filled(Concept(name="Van Gogh", kind=kind))
    assert len(set(filled)) == len(filled) >= 4
    assert all(p.endswith("Van Gogh") for p in filled)


def test_own_prompts_come_before_templates() -> None:
    assert prompts.asking(Concept(name="star", prompts=("a star", "stars!"))) == ("a star", "stars!")
    assert prompts.asking(Concept(name="star"))[0] == "star"


@pytest.mark.parametrize(
    ("prompt", "name", "cut", "swap"),
    [
        ("a red star on blue", "star", "a red star", "a red moon on blue"),
        ("a Star", "star", "a Star", "a moon"),
        ("a starfish and a star", "star", "a starfish and a star", "a starfish and a moon"),
        ("art by A. (B+)", "A. (B+)", "art by A. (B+)", "art by moon"),
        ("something else", "star", "something else", "moon"),
    ],
)
def test_names_are_found_as_whole_words(prompt: str, name: str, cut: str, swap: str) -> None:
    assert prompts.up_to(prompt, name) == cut
    assert prompts.swapped(prompt, name, "moon") == swap


def test_a_replacement_is_text_and_not_a_pattern() -> None:
    assert prompts.swapped("a star", "star", r"\1 \g<0>") == r"a \1 \g<0>"


def test_batches_cover_everything_in_order() -> None:
    assert [list(b) for b in prompts.batches([1, 2, 3, 4, 5], 2)] == [[1, 2], [3, 4], [5]]


def test_the_last_state_is_the_last_words_in_any_longer_prompt(host: SDHost) -> None:
    short, long = host.encode(["a red star"]), host.encode(["a red star on blue"])
    at = int(short.lengths[0]) - 2
    assert torch.allclose(text_states.last(short)[0], long.states[0, at], atol=1e-5)
    empty = host.encode([""])
    assert torch.equal(text_states.last(empty)[0], empty.states[0, 0])


def test_tails_are_paired_from_the_last_word_on(host: SDHost) -> None:
    states, into = text_states.paired_states(host, [("a red star", "moon"), ("moon", "")], "tail")
    star, moon, empty = (host.encode([p]) for p in ("a red star", "moon", ""))
    first = int(star.lengths[0]) - 2
    n = star.states.shape[1] - first
    assert torch.allclose(states[:n], star.states[0, first:], atol=1e-5)
    assert torch.allclose(into[:n], moon.states[0, int(moon.lengths[0]) - 2 :][:n], atol=1e-5)
    assert torch.allclose(into[n:], empty.states[0, : len(into) - n], atol=1e-5)


def test_pairs_follow_the_request() -> None:
    star, moon = Concept(name="star", prompts=("a red star here",)), Concept(name="moon")
    ring, house = Concept(name="ring"), Concept(name="house")
    assert text_states.pairs(Request(target=(star, moon)), expand=False) == [("a red star", ""), ("moon", "")]
    several = Concept(name="star", prompts=("a red star here", "stars: a star"))
    assert text_states.texts(several, expand=False) == ("a red star",)
    assert text_states.texts(several, expand=True)[:2] == ("a red star", "stars: a star")
    both = text_states.pairs(Request(target=(star, moon), toward=(ring, house)), expand=False)
    assert both == [("a red star", "a red ring"), ("moon", "house")]


def test_nearest_ranks_by_cosine_of_the_names_states(host: SDHost) -> None:
    target = Concept(name="star", prompts=("a star on blue",))
    same = Concept(name="star", prompts=("a star at night",))  # equal up to the name
    found = neighbours.nearest(host, target, [Concept(name="q"), same, Concept(name="house")], 2)
    assert found[0][0] is same
    assert found[0][1] == pytest.approx(1.0, abs=1e-5)
    assert len(found) == 2
    assert found[1][1] < 1
    assert neighbours.nearest(host, target, [], 3) == []


SCHEDULES = {"vp": lambda s: (1 - s**2) ** 0.5, "flow": lambda s: 1 - s}


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_parametrisations_are_inverse_to_each_other(schedule: str) -> None:
    g = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(6, 3, 4, 4, generator=g, dtype=torch.float64) for _ in range(2))
    sigma = torch.linspace(0.1, 0.9, 6, dtype=torch.float64).view(-1, 1, 1, 1)
    alpha = SCHEDULES[schedule](sigma)
    x = alpha * x0 + sigma * noise
    outputs = {"epsilon": noise, "v_prediction": alpha * noise - sigma * x0, "flow": noise - x0}
    for prediction in ("epsilon", "v_prediction") if schedule == "vp" else ("epsilon", "flow"):
        output = from_x0(prediction, x0, x, alpha, sigma)
        torch.testing.assert_close(output.double(), outputs[prediction], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(to_x0(prediction, output, x, alpha, sigma).double(), x0, atol=1e-5, rtol=1e-4)


def test_guidance_reads_the_same_in_x0_and_in_noise() -> None:
    g = torch.Generator().manual_seed(1)
    x, null, cond = (torch.randn(2, 3, 4, 4, generator=g, dtype=torch.float64) for _ in range(3))
    alpha = torch.tensor(0.8, dtype=torch.float64)
    sigma = torch.tensor(0.6, dtype=torch.float64)
    for rule in (guidance.classifier_free, guidance.away_from):
        direct = rule(null, cond, 3.0)
        around = rule((x - alpha * null) / sigma, (x - alpha * cond) / sigma, 3.0)
        assert torch.allclose((x - sigma * around) / alpha, direct)


def test_the_safety_scale_is_clipped_and_cut_off() -> None:
    cond, concept = torch.tensor([0.0, 0.0, 0.0, 0.0]), torch.tensor([2.0, 0.001, -0.005, -0.5])
    scale = guidance.safety_scale(cond, concept, scale=100.0, threshold=0.01)
    assert torch.allclose(scale, torch.tensor([1.0, 0.1, 0.5, 0.0]))


def test_an_error_of_x0_is_turned_into_one_of_the_output() -> None:
    g = torch.Generator().manual_seed(2)
    x0, other, noise = (torch.randn(3, 2, 4, 4, generator=g, dtype=torch.float64) for _ in range(3))
    sigma = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64).view(-1, 1, 1, 1)
    for prediction in ("epsilon", "v_prediction", "flow"):
        alpha = SCHEDULES["flow" if prediction == "flow" else "vp"](sigma)
        x = alpha * x0 + sigma * noise
        apart = (from_x0(prediction, y, x, alpha, sigma).double() for y in (other, x0))
        apart = next(apart) - next(apart)
        host = SimpleNamespace(prediction=prediction, noise=lambda t, alpha=alpha: (alpha, t.view(-1, 1, 1, 1)))
        off = guidance.output_error(host, sigma.flatten(), other, x0)  # type: ignore[arg-type]
        torch.testing.assert_close(off.abs(), apart.abs(), atol=1e-5, rtol=1e-4, msg=prediction)


def test_without_a_replacement_the_rest_of_the_prompt_is_the_anchor() -> None:
    star = Concept(name="star", prompts=("a red star on mint", "star"))
    pairs = dict(anchored(Request(target=(star,))))
    assert pairs["a red star on mint"] == "a red on mint"
    assert pairs["star"] == ""
    toward = Request(target=(star,), toward=(Concept(name="moon"),))
    assert dict(anchored(toward))["a red star on mint"] == "a red moon on mint"
    both = Request(target=(star, Concept(name="dark moon", prompts=("a dark moon",))))
    assert dict(anchored(both))["a dark moon"] == "a"
