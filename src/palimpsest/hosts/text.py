"""Reads prompts with the text encoders of diffusers pipelines, in batches, cut where that changes nothing."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.core.errors import BadRequest
from palimpsest.hosts.speaking import NOTHING, Spoken

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


def read_clip(
    tokenizer: Any,
    encoder: Any,
    prompts: Sequence[str],
    *,
    cut: bool,
    layer: int | None = None,
    spoken: Spoken = NOTHING,
) -> Text:
    """States of a CLIP text encoder.

    Args:
        cut: stop at the longest prompt's end token. The encoder is causal, so the states stay the same.
        layer: index of the hidden layer to read without final normalisation; None: the normalised last one.
        spoken: words that it reads beside its vocabulary.

    Cost: one forward for every 64 prompts, of L tokens each.
    """
    longest = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    ids, mask = _tokenize(tokenizer, prompts, longest, spoken)
    lengths = mask.sum(1)
    if cut:
        ids, mask = ids[:, : int(lengths.max())], mask[:, : int(lengths.max())]
    masked = getattr(encoder.config, "use_attention_mask", False)
    states, pooled = [], []
    with _filling(encoder, spoken.vectors(encoder.device) if (ids < 0).any() else None):
        for i in range(0, len(ids), BATCH):
            out = encoder(
                ids[i : i + BATCH].to(encoder.device),
                attention_mask=mask[i : i + BATCH].to(encoder.device) if masked else None,
                output_hidden_states=layer is not None,
            )
            states.append(out.last_hidden_state if layer is None else out.hidden_states[layer])
            pooled.append(out.text_embeds if hasattr(out, "text_embeds") else out.pooler_output)
    return Text(states=torch.cat(states), lengths=lengths, pooled=torch.cat(pooled))


def read_t5(
    tokenizer: Any, encoder: Any, prompts: Sequence[str], *, cut: bool, longest: int, spoken: Spoken = NOTHING
) -> tuple[Tensor, Tensor]:
    """States (n, L, d) and lengths (n,) of a T5 encoder, which pipelines run without a mask.

    It is not causal: padding is part of what each state has seen. So it always runs at `longest` tokens, and `cut`
    only drops states behind the longest prompt's end token.
    """
    ids, mask = _tokenize(tokenizer, prompts, longest, spoken)
    lengths = mask.sum(1)
    with _filling(encoder, spoken.vectors(encoder.device) if (ids < 0).any() else None):
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


def row_of(tokenizer: Any, pieces: Sequence[str | range], longest: int) -> list[int]:
    """The ids of a prompt from its start to its end token, cut to `longest`; -1 - i is row i of the spoken vectors."""
    empty = tokenizer("").input_ids
    ids = list[int]()
    for piece in pieces:
        if isinstance(piece, range):
            ids += [-1 - i for i in piece]
        else:
            (text,) = spelt(tokenizer, [piece])
            ids += tokenizer(text, add_special_tokens=False, truncation=True, max_length=longest).input_ids
    return [*empty[:-1], *ids[: longest - len(empty)], *empty[-1:]]


def looked_up(ids: Tensor, table: nn.Module, vectors: Tensor | None) -> Tensor:
    """(n, L, d) what a token table, and for ids below zero the spoken vectors, have at these ids (n, L)."""
    return _put(table(ids.clamp(min=0)), ids, vectors)


def lookups(encoder: nn.Module, table: nn.Module) -> list[nn.Module]:
    """The modules by which an encoder looks up a token table: some have another one over the same tensor."""
    weight = table._parameters.get("weight")  # while it is trained, or visits a device, a plain tensor
    return [module for module in encoder.modules() if module._parameters.get("weight") is weight]


def unwrapped(module: nn.Module) -> nn.Module:
    """A CLIP text encoder without the shell that only older versions of transformers put around it."""
    inner = getattr(module, "text_model", None)
    return inner if isinstance(inner, nn.Module) and not hasattr(module, "text_projection") else module


@contextmanager
def _filling(encoder: Any, vectors: Tensor | None) -> Iterator[None]:
    """Inside, the encoder takes ids below zero for rows of the vectors.

    They reach it as row 0 of its table, an ordinary word (or padding that no mask counts) in every vocabulary. These
    hooks are the last ones, so that they see ids where others have moved them.
    """
    if vectors is None:
        yield
        return
    seen: list[Tensor] = []

    def give_place(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        seen[:] = [args[0] if args else kwargs["input_ids"]]
        ids = seen[0].clamp(min=0)
        return ((ids, *args[1:]), kwargs) if args else (args, {**kwargs, "input_ids": ids})

    def put(table: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        return _put(out, seen[0], vectors)

    inner = unwrapped(encoder)
    with ExitStack() as stack:
        stack.callback(inner.register_forward_pre_hook(give_place, with_kwargs=True).remove)
        for table in lookups(inner, encoder.get_input_embeddings()):
            stack.callback(table.register_forward_hook(put).remove)
        yield


def _put(states: Tensor, ids: Tensor, vectors: Tensor | None) -> Tensor:
    if vectors is None:
        return states
    rows = vectors.to(states.device, states.dtype)[(-1 - ids).clamp(min=0)]
    return torch.where((ids < 0)[..., None], rows, states)


def _tokenize(tokenizer: Any, prompts: Sequence[str], longest: int, spoken: Spoken) -> tuple[Tensor, Tensor]:
    pieces = [spoken.pieces(prompt) for prompt in prompts]
    texts = spelt(tokenizer, [p[0] if isinstance(p[0], str) else "" for p in pieces])
    tokens = tokenizer(texts, padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
    ids, mask = tokens.input_ids, tokens.attention_mask
    for i, parts in enumerate(pieces):
        if len(parts) > 1:
            row = torch.tensor(row_of(tokenizer, parts, longest))
            ids[i], mask[i] = tokenizer.pad_token_id, 0
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return ids, mask


def some(prompts: Sequence[str]) -> list[str]:
    """The prompts, of which there is one at least."""
    if isinstance(prompts, str):
        raise BadRequest(f"Prompts must be a list of strings; got the single string {prompts!r}.")
    if not prompts:
        raise BadRequest("There is no prompt; give at least one (the empty string is a prompt, too).")
    return list(prompts)


def paired(prompts: Sequence[str], seeds: Sequence[int]) -> tuple[list[str], list[int]]:
    """The prompts and as many seeds."""
    rows = some(prompts), list(seeds)
    if len(rows[0]) != len(rows[1]):
        raise BadRequest(f"{len(rows[0])} prompts but {len(rows[1])} seeds; give one seed for each prompt.")
    return rows
