"""Reads prompts with the text encoders of diffusers pipelines, in batches, cut where that changes nothing."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BATCH = 64  # prompts that go through a text encoder at once


@dataclass(frozen=True, kw_only=True)
class Text:
    """What one CLIP text encoder makes of n prompts.

    Args:
        states: (n, L, d).
        lengths: (n,) int64; tokens up to the end token, which counts.
        pooled: (n, p) the end token's state, projected where the encoder does so.
    """

    states: Tensor
    lengths: Tensor
    pooled: Tensor


def read_clip(tokenizer: Any, encoder: Any, prompts: Sequence[str], *, cut: bool, layer: int | None = None) -> Text:
    """States of a CLIP text encoder.

    Args:
        cut: stop at the longest prompt's end token. The encoder is causal, so the states stay the same.
        layer: index of the hidden layer to read without final normalisation; None: the normalised last one.

    Cost: one forward for every 64 prompts, of L tokens each.
    """
    longest = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    ids, mask = _tokenize(tokenizer, prompts, longest)
    lengths = mask.sum(1)
    if cut:
        ids, mask = ids[:, : int(lengths.max())], mask[:, : int(lengths.max())]
    masked = getattr(encoder.config, "use_attention_mask", False)
    states, pooled = [], []
    for i in range(0, len(ids), BATCH):
        out = encoder(
            ids[i : i + BATCH].to(encoder.device),
            attention_mask=mask[i : i + BATCH].to(encoder.device) if masked else None,
            output_hidden_states=layer is not None,
        )
        states.append(out.last_hidden_state if layer is None else out.hidden_states[layer])
        pooled.append(out.text_embeds if hasattr(out, "text_embeds") else out.pooler_output)
    return Text(states=torch.cat(states), lengths=lengths, pooled=torch.cat(pooled))


def read_t5(tokenizer: Any, encoder: Any, prompts: Sequence[str], *, cut: bool, longest: int) -> tuple[Tensor, Tensor]:
    """States (n, L, d) and lengths (n,) of a T5 encoder, which pipelines run without a mask.

    It is not causal: padding is part of what each state has seen. So it always runs at `longest` tokens, and `cut`
    only drops states behind the longest prompt's end token.
    """
    ids, mask = _tokenize(tokenizer, prompts, longest)
    lengths = mask.sum(1)
    states = [encoder(ids[i : i + BATCH].to(encoder.device))[0] for i in range(0, len(ids), BATCH)]
    end = int(lengths.max()) if cut else longest
    return torch.cat(states)[:, :end], lengths


def words_of(tokenizer: Any) -> str:
    """sha256 of a tokenizer's vocabulary, added words and length."""
    words = sorted(tokenizer.get_vocab().items()), tokenizer.model_max_length
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def spelt(tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """Prompts with words of several vectors ("<cat>", "<cat>_1", ... of textual inversion) written out."""
    added = tokenizer.added_tokens_encoder
    if not any(f"{word}_1" in added for word in added):
        return list(prompts)
    out = []
    for prompt in prompts:
        for word in set(tokenizer.tokenize(prompt)) & set(added):
            more = itertools.takewhile(added.__contains__, (f"{word}_{i}" for i in itertools.count(1)))
            prompt = prompt.replace(word, " ".join((word, *more)))
        out.append(prompt)
    return out


def _tokenize(tokenizer: Any, prompts: Sequence[str], longest: int) -> tuple[Tensor, Tensor]:
    tokens = tokenizer(list(prompts), padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
    return tokens.input_ids, tokens.attention_mask
