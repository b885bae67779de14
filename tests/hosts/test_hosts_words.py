"""Words of a pipeline's tokenizers, and their states: those that prompts have, whatever the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hosts_fixtures import clip_tokenizer, fresh_host, host_of, t5_tokenizer
from palimpsest.hosts.words import WordReader
from palimpsest.ops.text_states import last

FAMILIES = ("sd", "sdxl", "sd3", "sd3_without_t5", "flux")
TEXTS = ["star", "moon", "q", "a red star", "two houses", "Vincent van Gogh", "star", "", "x" * 100]


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_the_first_encoder_in_prompts(family: str) -> None:
    host = host_of(family)
    assert host.reader is not None
    told: list[tuple[int, int]] = []
    states, lengths = host.reader.read(TEXTS, lambda done, total: told.append((done, total)))
    assert told[-1] == (len(TEXTS), len(TEXTS))
    assert lengths.tolist()[:3] == [1, 4, 1]
    assert lengths[-2] == 0
    assert torch.equal(states[0], states[6])
    alone = torch.cat([host.reader.read([text])[0] for text in TEXTS])
    assert torch.allclose(states, alone, atol=1e-5)
    if family != "flux":  # its prompts are read by T5 alone
        with torch.no_grad():
            expected = last(host.tokens(TEXTS))[:, : states.shape[1]]
        assert torch.allclose(states, expected, atol=1e-5)


def test_words_are_whole_and_of_letters(tmp_path: Path) -> None:
    class Pipeline:
        tokenizer = clip_tokenizer(tmp_path / "clip")
        tokenizer_2 = t5_tokenizer(tmp_path / "t5")
        text_encoder = torch.nn.Linear(2, 2)

    vocabulary = {
        **Pipeline.tokenizer.get_vocab(),
        **{
            w: 500 + i
            for i, w in enumerate(("dog</w>", "Dog</w>", "pre", "ab</w>", "c3po</w>", "Ã©tÃ©</w>", "hyphen-ed</w>"))
        },
    }
    Pipeline.tokenizer.get_vocab = lambda: vocabulary  # type: ignore[method-assign]
    Pipeline.tokenizer_2.get_vocab = lambda: {"▁cat": 0, "ming": 1, "▁": 2, "▁Été": 3, "▁12": 4}  # type: ignore[method-assign]
    both = WordReader(Pipeline, ("tokenizer", "tokenizer_2", "tokenizer_3"), None)
    assert both.words == ("cat", "dog", "star", "été")
    assert WordReader(Pipeline, ("tokenizer",), None).words == ("dog", "star")


def test_the_hash_follows_encoder_tokenizer_and_layer() -> None:
    host = fresh_host("sd")
    assert host.reader is not None
    first = host.reader.sha256
    assert first == host_of("sd").reader.sha256  # type: ignore[union-attr]
    assert first != WordReader(host.pipeline, ("tokenizer",), -2).sha256
    with torch.no_grad():
        next(host.pipeline.unet.parameters()).add_(1)
    assert host.reader.sha256 == first
    with torch.no_grad():
        next(host.pipeline.text_encoder.parameters()).add_(1)
    assert host.reader.sha256 != first


def test_a_pipeline_without_a_tokenizer_has_no_reader() -> None:
    from palimpsest.hosts.sd import SDHost

    pipeline = fresh_host("sd").pipeline
    pipeline.tokenizer = None
    assert SDHost(pipeline, name="mute").reader is None
