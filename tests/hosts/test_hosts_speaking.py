"""Words in prompts: states and pictures of plain libraries that know them, and nothing of them before and after."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from test_hosts_offload import Elsewhere, offloaded
from torch import Tensor

from hosts_fixtures import SIZE, fresh_host, host_of, largest, pipeline_of
from palimpsest.core.errors import BadRequest
from palimpsest.core.fingerprint import hook_count
from palimpsest.core.patch import Patch, compose
from palimpsest.core.sampling import Sampling
from palimpsest.core.words import Word
from palimpsest.hosts.diffusion import DiffusionHost
from palimpsest.ops.text_states import last
from palimpsest.probes.crew import Loadable, Piece, _elsewhere
from palimpsest.probes.groups import Shot
from words_fixture import word_for

FAMILIES = ("sd", "sd_v", "sdxl", "sd3", "flux")
ASKED = ["a red <crown>", "<bell>, <crown> and <Crown>", "moon", "", "<crown>" + " x" * 30, "q " * 21 + "<bell>"]
SPOKEN = {"<crown>": {"k": 1, "seed": 1}, "<bell>": {"k": 3, "seed": 2}}


def words_of(host: DiffusionHost, **more: Any) -> dict[str, Word]:
    return {word: word_for(host, **settings, **more) for word, settings in SPOKEN.items()}


def named(pipeline: Any, part: str) -> tuple[Any, Any]:
    return getattr(pipeline, part, None), getattr(pipeline, part.replace("text_encoder", "tokenizer"), None)


def grown(family: str, words: dict[str, Word]) -> Any:
    """The pipeline as plain libraries have it, its CLIP tokenizers and tables grown by the words."""
    pipeline = pipeline_of(family)
    for part in ("text_encoder", "text_encoder_2"):
        encoder, tokenizer = named(pipeline, part)
        for word, meant in words.items():
            own = [v for table, v in meant.vectors.items() if table.startswith(f"{part}.")]
            if own:
                rows = {f"{word}_{i}" if i else word: v for i, v in enumerate(own[0])}
                tokenizer.add_tokens(list(rows))
                encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
                for token, vector in rows.items():
                    encoder.get_input_embeddings().weight.data[tokenizer.convert_tokens_to_ids(token)] = vector
    return pipeline


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_a_pipeline_that_was_grown_by_the_words(family: str) -> None:
    host = host_of(family)
    words = words_of(host, reads_as="star", clip=True)
    pipeline = grown(family, words)
    theirs = type(host)(pipeline, name="grown")
    asked = [re.sub("<crown>", "<crown>", p, flags=re.IGNORECASE) for p in ASKED]  # theirs may know small letters only
    with host.speaking(words), torch.no_grad():
        found, short = host.encode(asked), host.tokens(asked)
        capitals = host.encode(ASKED)
    expected = theirs.encode(asked)
    if family in ("sd3", "flux"):
        t5 = _t5_states(host, [re.sub("<crown>|<bell>", "star", p) for p in asked])
        torch.testing.assert_close(found.states[:, -t5.shape[1] :], t5, atol=1e-5, rtol=1e-4)
    clip = {"sd3": found.states.shape[1] - 256, "flux": 0}.get(family, found.states.shape[1])
    torch.testing.assert_close(found.states[:, :clip], expected.states[:, :clip], atol=1e-5, rtol=1e-4)
    if family != "flux":
        assert found.lengths.tolist() == expected.lengths.tolist()
    if found.pooled is not None:
        torch.testing.assert_close(found.pooled, expected.pooled, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(capitals.states, found.states, atol=1e-5, rtol=1e-4)
    if family != "flux":
        torch.testing.assert_close(last(short), last(found), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def _t5_states(host: DiffusionHost, prompts: list[str]) -> Tensor:
    pipe, number = host.pipeline, "_2" if "text_encoder_3" not in host.encoders else "_3"
    length = 512 if number == "_2" else 256
    tokens = getattr(pipe, f"tokenizer{number}")(prompts, padding="max_length", max_length=length, truncation=True)
    return getattr(pipe, f"text_encoder{number}")(torch.tensor(tokens.input_ids))[0]


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_pictures_are_those_of_diffusers_own_reader(family: str) -> None:
    """k = 1 and 3, in the prompt and in the negative prompt, by two patches."""
    host, pipeline = host_of(family), pipeline_of(family)
    words = words_of(host)
    for word, meant in words.items():
        for table, vectors in meant.vectors.items():
            encoder, tokenizer = named(pipeline, table.partition(".")[0])
            pipeline.load_textual_inversion({word: vectors.clone()}, text_encoder=encoder, tokenizer=tokenizer)
    patches = [Patch(base=host.fingerprint(), words={word: meant}) for word, meant in words.items()]
    how = {"guidance": 4.0, "negative": "<bell> moon"}
    prompts = ["a red <crown>", "<bell> x"]
    with patches[0].applied(host), patches[1].applied(host):
        found = host.sample(prompts, [3, 5], Sampling(steps=2, size=SIZE, **how))
    with compose(*patches).applied(host):
        both = host.sample(prompts, [3, 5], Sampling(steps=2, size=SIZE, **how))
    assert torch.equal(found, both)
    for row, (prompt, seed) in enumerate(zip(prompts, (3, 5), strict=True)):
        theirs = pipeline(
            prompt,
            negative_prompt=how["negative"],
            guidance_scale=how["guidance"],
            generator=torch.Generator().manual_seed(seed),
            num_inference_steps=2,
            height=SIZE,
            width=SIZE,
            output_type="pt",
        ).images
        assert largest(found[row : row + 1], theirs) < 1e-5
    unknown = host.sample(prompts, [3, 5], Sampling(steps=2, size=SIZE, **how))
    assert largest(found[:1], unknown[:1]) > 1e-2


@pytest.mark.parametrize("clip", [True, False])
def test_a_word_has_the_gradient_of_its_finite_difference(clip: bool) -> None:
    host = fresh_host("sd3")
    host.root.double()
    word = word_for(host, 2, reads_as="star" if clip else "", clip=clip).mapped(
        lambda v: v.double().requires_grad_(True)
    )
    weights = torch.randn(host.encode(["q"]).states.shape, generator=torch.Generator().manual_seed(0)).double()

    def value(meant: Word) -> Tensor:
        with host.speaking({"<a>": meant}):
            return (host.encode(["an <a> <a>", "<a>"]).states * weights).sum()

    tables = list(word.vectors)
    assert len(tables) == (2 if clip else 3)
    found = torch.autograd.grad(value(word), [word.vectors[t] for t in tables])
    for table, gradient in zip(tables, found, strict=True):
        toward = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(1)).double()
        with torch.no_grad():
            ends = [
                value(Word(vectors={**word.vectors, table: word.vectors[table] + e * toward}, reads_as=word.reads_as))
                for e in (1e-4, -1e-4)
            ]
        slope = (ends[0] - ends[1]) / 2e-4
        assert float(slope.abs()) > 1e-3
        rough = 1e-2 if table.endswith("shared") else 1e-4  # T5 takes means of squares in single precision
        torch.testing.assert_close((gradient * toward).sum(), slope, rtol=rough, atol=1e-6)


def test_the_pooled_state_stays_at_the_end_token_where_it_is_found_by_the_largest_id() -> None:
    """`eos_token_id` 2, as Stable Diffusion 1 and XL have it: a new id would be the largest."""
    host = fresh_host("sdxl")
    word = {"<a>": word_for(host, 3)}
    asked = ["a red moon <a> q", "<a>", "moon"]  # letters, whose ids lie below the end token's
    with host.speaking(word):
        right = host.encode(asked).pooled
    for module in host.root.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = 2  # type: ignore[assignment]
    with host.speaking(word):
        found = host.encode(asked)
        alone = host.encode(["moon"])
    assert found.pooled is not None
    assert right is not None
    torch.testing.assert_close(found.pooled, right, atol=1e-6, rtol=1e-5)
    assert largest(found.pooled[2:], host.encode(["moon"]).pooled) < 1e-6  # type: ignore[arg-type]
    assert largest(found.pooled[2:], alone.pooled) < 1e-6  # type: ignore[arg-type]


@pytest.mark.parametrize("prompt", ["x<a>", "<a>s", "<a>_1", "a", "<ab>", "sksy", "the sks1"])
def test_a_word_inside_a_longer_one_is_none(prompt: str) -> None:
    host = host_of("sd")
    plain = host.encode([prompt]).states
    with host.speaking({"<a>": word_for(host), "sks": word_for(host, seed=1)}):
        assert torch.equal(host.encode([prompt]).states, plain)
        assert not torch.allclose(host.encode(["(sks)"]).states, host.encode(["( )"]).states, atol=1e-3)


def test_the_longest_word_is_read() -> None:
    host = host_of("sd")
    short, long = word_for(host, 1), word_for(host, 2, seed=1)
    with host.speaking({"<a>-b": long}):
        alone = host.encode(["a <a>-b, q"]).states
    with host.speaking({"<a>": short, "<a>-b": long}):
        assert torch.equal(host.encode(["a <a>-b, q"]).states, alone)


def test_nothing_is_known_before_and_after() -> None:
    host = host_of("sdxl")
    base, hooks, settings = host.fingerprint(), hook_count(host.root), host.settings()
    before = host.encode(ASKED)
    patch = Patch(base=base, words=words_of(host))
    with patch.applied(host):
        assert (host.fingerprint(), hook_count(host.root)) == (base, hooks)
        assert host.settings() != settings
        during = host.encode(ASKED)
        assert not torch.allclose(during.states[0], before.states[0], atol=1e-3)
        assert torch.equal(during.states[2:4], before.states[2:4])
    with pytest.raises(ZeroDivisionError), patch.applied(host):
        _ = 1 / (hooks - hooks)
    after = host.encode(ASKED)
    assert torch.equal(after.states, before.states)
    assert torch.equal(after.pooled, before.pooled)  # type: ignore[arg-type]
    assert (host.fingerprint(), hook_count(host.root), host.settings()) == (base, hooks, settings)


def test_one_word_has_one_meaning_at_a_time_and_contexts_end_in_any_order() -> None:
    host = host_of("sd")
    crown, other = word_for(host), word_for(host, seed=1)
    with (
        host.speaking({"<a>": crown}),
        host.speaking({"<a>": crown.mapped(torch.clone)}),
        pytest.raises(BadRequest, match="another meaning"),
        host.speaking({"<A>": other}),
    ):
        pass
    first, second = host.speaking({"<a>": crown}), host.speaking({"<b>": other})
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert list(host.speech.words) == ["<b>"]
    second.__exit__(None, None, None)
    assert not host.speech.words


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_vectors_before_a_prompt_and_words_in_it_are_read_together(family: str) -> None:
    host = host_of(family)
    words = {"<a>": word_for(host, 2), "<b>": word_for(host, 3, seed=1)}
    with host.speaking(words):
        typed = host.encode(["<a> q <b>"])
        with host.prefixed(words["<a>"].vectors):
            found = host.encode(["q <b>"])
    with host.prefixed(words["<a>"].vectors), host.speaking(words):
        other = host.encode(["q <b>"])
    for cond in (found, other):
        rows = slice(0, 24)  # of CLIP encoders; T5, which has no start token, reads vectors behind the first one
        torch.testing.assert_close(cond.states[:, rows], typed.states[:, rows], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(host.encode(["q <b>"]).states, found.states, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_single_words_are_read_as_in_prompts(family: str) -> None:
    host = host_of(family)
    words = words_of(host)
    assert host.reader is not None
    silent, sha256 = host.reader.read(["<bell>"])[0], host.reader.sha256
    with host.speaking(words):
        states, lengths = host.reader.read(["<bell>", "a <crown>", "moon"])
        assert lengths.tolist() == [3, 2, 4]
        if family != "flux":
            expected = last(host.tokens(["<bell>", "a <crown>", "moon"]))[:, : states.shape[1]]
            torch.testing.assert_close(states, expected.detach(), atol=1e-5, rtol=1e-4)
        assert host.reader.sha256 == sha256
    with host.speaking({"moon": words["<bell>"]}):
        assert host.reader.sha256 != sha256, "what was kept of a word of the vocabulary would be of another one"
    assert largest(silent, states[:1]) > 1e-3


def test_another_process_draws_with_the_words_of_a_patch(tmp_path: Any) -> None:
    host = host_of("sd")
    patch = Patch(base=host.fingerprint(), words=words_of(host))
    shot, how = Shot(group=0, prompt="a <crown>", seed=4), Sampling(steps=2, size=SIZE)
    model = Loadable.of(host)
    assert model is not None
    piece = Piece(which="after", who="it", shots=(shot,), how=how, model=model, patch=str(patch.save(tmp_path / "p")))
    drawn = _elsewhere(piece)
    with patch.applied(host):
        here = host.sample(["a <crown>"], [4], how)
        speaking = Loadable.of(host)
    assert drawn is not None
    assert torch.equal(torch.from_numpy(drawn.pictures), (here * 255).round().to(torch.uint8))
    assert speaking is not None
    assert _elsewhere(Piece(which="x", who="it", shots=(shot,), how=how, model=speaking)) is None, "it knows no words"


def test_encoders_that_visit_a_device_read_words_there(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Elsewhere(monkeypatch)
    host, other = offloaded("sd3", elsewhere), host_of("sd3")
    words = {"<a>": word_for(host, 2)}
    with host.speaking(words), other.speaking(words):
        assert torch.equal(host.encode(["an <a> q"]).states, other.encode(["an <a> q"]).states)
    assert elsewhere.copied
