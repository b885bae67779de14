"""What a pipeline makes of single words: the whole words of its tokenizers, and the state of each text's last one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from palimpsest.hosts.speaking import NOTHING, Spoken, digest
from palimpsest.hosts.text import looked_up, row_of, spelt, words_of
from palimpsest.hosts.weights import Weights

END, START = "</w>", "\u2581"  # of whole words: after them (byte-pair vocabularies of CLIP), before them (T5's pieces)
LETTERS = 3  # that a word has at least
ROWS = 1024  # tokens that go through the text encoder at once


class WordReader:
    """Reads words as a pipeline does, by its first text encoder, a CLIP one in every family that has a host here.

    The further encoders of SDXL, SD3 and Flux are eight to fifty times as large, and would say little else of which
    words lie near each other.

    Args:
        pipeline: its `tokenizer` and `text_encoder` are read when they are asked, and may be changed.
        readers: names of all its tokenizers.
        layer: index of the hidden layer that the denoiser reads; None: the normalised last one.
        spoken: gives what the encoder of a name reads where words that the host speaks stand.
    """

    def __init__(
        self,
        pipeline: Any,
        readers: Sequence[str],
        layer: int | None,
        spoken: Callable[[str], Spoken] = lambda encoder: NOTHING,
    ) -> None:
        self._spoken = spoken
        self._pipeline, self._layer = pipeline, layer
        self._readers = readers
        self._weights = Weights(pipeline.text_encoder)

    @property
    def words(self) -> tuple[str, ...]:
        """The whole words of the model's tokenizers: letters only, three at least, in lower case, sorted.

        In a byte-pair vocabulary ends of words ("tion") look like whole ones and are among them.
        """
        found = {word.lower() for tokenizer in self._tokenizers for word in map(_word, tokenizer.get_vocab())}
        return tuple(sorted(word for word in found if len(word) >= LETTERS and word.isalpha()))

    @property
    def sha256(self) -> str:
        """Of what decides `words` and `read`: the encoder's tensors, the tokenizers, the layer.

        And words that the host speaks, but for those in angle brackets: no vocabulary and no list has such, so what is
        kept under this hash stays right where one is spoken.
        """
        plain = {word: meant for word, meant in self._spoken("text_encoder").words.items() if not set(word) & set("<>")}
        parts = (self._weights.fingerprint(), self._layer, *map(words_of, self._tokenizers))
        parts = (*parts, digest(plain)) if plain else parts
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @torch.no_grad()
    def read(self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None) -> tuple[Tensor, Tensor]:
        """(n, d) float32 on the CPU: the state of each text's last token; (n,) int64: how many tokens each has.

        The encoder is causal, so these are the states that prompts have up to there. Texts of equal length share a
        batch: nothing is padded, the end token is left out, and the start token, equal for all, is computed once.

        Args:
            progress: is told (texts read, texts in all).

        Cost: one forward of the texts' tokens, `ROWS` at a time; half of what two-token texts would take otherwise.
        """
        tokenizer, encoder = self._pipeline.tokenizer, self._pipeline.text_encoder
        longest = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        tokens = tokenizer(spelt(tokenizer, texts), truncation=True, max_length=longest, return_attention_mask=False)
        spoken = self._spoken("text_encoder")
        pieces, vectors = map(spoken.pieces, texts), spoken.vectors(encoder.device)
        ids = [
            (row_of(tokenizer, parts, longest) if len(parts) > 1 else row)[:-1]
            for row, parts in zip(tokens.input_ids, pieces, strict=True)
        ]
        lengths = torch.tensor([len(row) for row in ids])
        order, states, done = lengths.argsort(stable=True), None, 0
        while done < len(ids):
            length = int(lengths[order[done]])
            rows = order[done : done + max(1, ROWS // max(1, length - 1))]
            rows = rows[lengths[rows] == length]
            batch = torch.tensor([ids[i] for i in rows.tolist()], device=encoder.device)
            last = _last(encoder, batch, self._layer, vectors)
            states = torch.empty(len(ids), last.shape[1]) if states is None else states
            states[rows] = last.float().cpu()
            done += len(rows)
            if progress is not None:
                progress(done, len(ids))
        assert states is not None, "there is at least one text"
        return states, lengths - 1

    @property
    def _tokenizers(self) -> list[Any]:
        return [t for t in (getattr(self._pipeline, name, None) for name in self._readers) if t is not None]


def _last(encoder: Any, ids: Tensor, layer: int | None, vectors: Tensor | None) -> Tensor:
    """(n, d) the last tokens' states in a causal CLIP text encoder, of (n, L) ids that begin with one start token."""
    text = getattr(encoder, "text_model", encoder)
    blocks, tables = text.encoder.layers, text.embeddings
    places = tables.position_embedding(torch.arange(ids.shape[1], device=ids.device))
    states = looked_up(ids, tables.token_embedding, vectors) + places
    start, rest = states[:1, :1], states[:, 1:]
    for block in blocks if layer is None else blocks[: len(blocks) + 1 + layer]:
        start, rest = _through(block, start, rest)
    state = (rest if ids.shape[1] > 1 else start.expand(len(ids), 1, -1))[:, -1]
    return text.final_layer_norm(state) if layer is None else state


def _through(block: Any, start: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """One block's states of the start token (1, 1, d), which attends to itself alone, and of what follows (n, l, d)."""
    attention, n, length = block.self_attn, *rest.shape[:2]
    first, others = block.layer_norm1(start), block.layer_norm1(rest)
    own = attention.v_proj(first)
    start = start + attention.out_proj(own)
    start = start + block.mlp(block.layer_norm2(start))
    if not length:
        return start, rest

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)

    keys = torch.cat([attention.k_proj(first).expand(n, -1, -1), attention.k_proj(others)], 1)
    values = torch.cat([own.expand(n, -1, -1), attention.v_proj(others)], 1)
    seen = torch.ones(length, length + 1, dtype=torch.bool, device=rest.device).tril(1)
    mixed = scaled_dot_product_attention(heads(attention.q_proj(others)), heads(keys), heads(values), attn_mask=seen)
    rest = rest + attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return start, rest + block.mlp(block.layer_norm2(rest))


def _word(token: str) -> str:
    """The word that a token is; "" for what is none, or may be a part of one."""
    if token.endswith(END):
        word = token.removesuffix(END)
        return word if word.isascii() else ""  # other bytes are written in letters that are not theirs
    return token.removeprefix(START) if token.startswith(START) else ""
