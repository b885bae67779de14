"""Captions as tokens of tiny/clip, and what is to be read from each token's state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from palimpsest_models.captions import KEYS, VOCABULARY, Caption

LENGTH = 77
CLASSES = tuple(len(VOCABULARY[key]) + 1 for key in KEYS)  # the last: not said, or not there
FIRST = {key: sum(len(VOCABULARY[k]) for k in KEYS[:i]) for i, key in enumerate(KEYS)}


class Encoder:
    """Captions as token ids, word by word: each word's tokens are looked up once."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.tokenizer, self.known = tokenizer, {}
        self.begin, self.end = len(tokenizer) - 2, len(tokenizer) - 1

    def __call__(self, caption: Caption) -> tuple[list[int], list[int]]:
        """(ids with both ends, for each word the place of its last token); words beyond the length are cut."""
        ids, places = [self.begin], []
        for word in caption.words:
            if word not in self.known:
                self.known[word] = self.tokenizer(word, add_special_tokens=False).input_ids
            if len(ids) + len(self.known[word]) > LENGTH - 1:
                break
            ids += self.known[word]
            places.append(len(ids) - 1)
        return [*ids, self.end], places


@dataclass
class Texts:
    """Captions of about one length: (n, L) ids, padded with the end token, and what to read at each token.

    Args:
        prefix: (n, L, keys) the word of each key said so far, its last class for none.
        own, mate: (marks, 3) and (marks, 4) rows: caption, place, [0 subject or 1 colour,] target.
    """

    rows: list[int]
    ids: Tensor
    prefix: Tensor
    own: Tensor
    mate: Tensor


def lay_out(captions: list[Caption], encode: Encoder, *, group: int = 32) -> list[Texts]:
    """Captions in groups of about equal length, so that little is padding; the long ones with a few short ones."""
    coded = [encode(caption) for caption in captions]
    order = sorted(range(len(captions)), key=lambda i: len(coded[i][0]))
    long = [i for i in order if len(coded[i][0]) > 40]
    short = order[: len(order) - len(long)]
    if long:  # a few short ones with them, so that padding is read at late places too
        few = short[:: max(1, len(short) // 2)][:2]
        long, short = long + few, [i for i in short if i not in few]
    groups = [short[i : i + group] for i in range(0, len(short), group)] + [long]
    return [_laid([(i, captions[i], *coded[i]) for i in g], encode.end, full=g is long) for g in groups if g]


def _laid(group: list[tuple[int, Caption, list[int], list[int]]], end: int, *, full: bool) -> Texts:
    longest = LENGTH if full else min(LENGTH, max(len(ids) for _, _, ids, _ in group) + 1)
    none = [size - 1 for size in CLASSES]
    ids, prefix, own, mate = [], [], [], []
    for row, (_, caption, tokens, places) in enumerate(group):
        state, lines, at = list(none), [], 0
        for place, mark in zip(places, caption.marks, strict=False):
            lines += [list(state)] * (place - at)
            at = place
            if mark is None:
                continue
            column, word = KEYS.index(mark[0]), mark[1]
            state[column] = word
            base = mark[0].rstrip("2")
            own.append((row, place, FIRST[base] + word))
            if base in ("subject", "colour"):
                other = KEYS.index(mark[0].replace(base, "colour" if base == "subject" else "subject"))
                mate.append((row, place, int(base == "colour"), state[other]))
        lines += [list(state)] * (longest - at)
        ids.append(tokens + [end] * (longest - len(tokens)))
        prefix.append(lines)
    return Texts(
        rows=[i for i, *_ in group],
        ids=torch.tensor(ids),
        prefix=torch.tensor(prefix),
        own=torch.tensor(own).view(-1, 3),
        mate=torch.tensor(mate).view(-1, 4),
    )
