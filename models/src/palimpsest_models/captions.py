"""Captions whose every word is marked with what it says of the picture: what tiny/clip learns from.

A caption begins as a canonical string (the world's own forms, or the freer ones here), is marked word by word, and then
varied: other words for the same, openings, words that say nothing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from palimpsest.ops.prompts import TEMPLATES
from palimpsest.tiny.phrases import OPENINGS, SYNONYMS
from palimpsest_models.everyday import nothing
from palimpsest_models.pool import WORLDS

Mark = tuple[str, int]  # a key and which of its words

GLYPHS, FACES = WORLDS["glyphs"], WORLDS["faces"]
RELATIONS = ("left of", "above", "right of", "below", "and")  # those of Glyphs first
VOCABULARY: dict[str, tuple[str, ...]] = {**FACES.vocabulary, **GLYPHS.vocabulary, "relation": RELATIONS}
KEYS = tuple(VOCABULARY)
"""All label keys of both worlds; style and background are the same words in both."""
_TELLS = {"glyphs": re.compile(r"\bshape\b"), "faces": re.compile(r"\b(person|portrait|face)\b")}
_SHARED = ("style", "background")
_OWN = 0.5  # the share of captions in the freer forms
_KINDS = {"subject": "object", "style": "style", "background": "domain", "identity": "identity"}
_PLACES = {"centre": ("in the", "at the"), "left": ("on the", "to the"), "right": ("on the", "to the"),
           "top": ("at the", "near the"), "bottom": ("at the", "near the")}  # fmt: skip
_WORN = {"glasses": "glasses", "sunglasses": "sunglasses", "cap": "a cap", "beanie": "a beanie", "fedora": "a fedora"}


def _pattern(world: str) -> tuple[re.Pattern[str], dict[str, Mark]]:
    keys = [k for k in WORLDS[world].vocabulary if not k.endswith("2")]
    marks = {word: (key, i) for key in keys for i, word in enumerate(VOCABULARY[key])}
    longest = sorted(marks, key=len, reverse=True)
    return re.compile(r"\b(?:" + "|".join(map(re.escape, longest)) + r")\b"), marks


_PATTERNS = {world: _pattern(world) for world in WORLDS}


@dataclass(frozen=True)
class Caption:
    """Words and, for each, its mark: the key and word that it says; None where it says nothing.

    In a caption of two subjects, `subject2` and `colour2` mark those of the subject that is named second.

    Args:
        world: "glyphs" or "faces"; "" where the words leave open which.
    """

    words: tuple[str, ...]
    marks: tuple[Mark | None, ...]
    world: str

    @property
    def text(self) -> str:
        return re.sub(r" (?=[,.])", "", " ".join(self.words))

    @property
    def said(self) -> dict[str, int]:
        """key -> word, as named."""
        return dict(mark for mark in self.marks if mark is not None)


def marked(text: str, world: str) -> Caption:
    """A canonical string, marked: a word of several parts ("without glasses") is marked at its last."""
    pattern, table = _PATTERNS[world]
    ends: dict[int, Mark] = {}
    second = ""
    for match in pattern.finditer(text):
        key, index = table[match.group()]
        if key == "relation":
            second = "2"
        elif key in ("subject", "colour"):
            key += second
        ends[match.end()] = (key, index)
    pieces = list(re.finditer(r"[^\W\d_]+|[^\w\s]", text))
    marks = tuple(ends.get(piece.end()) for piece in pieces)
    told = any(mark is not None and mark[0] not in _SHARED for mark in marks)
    named = _TELLS[world].search(text) is not None
    return Caption(tuple(piece.group() for piece in pieces), marks, world if told or named else "")


def write(world: str, labels: Mapping[str, Tensor], *, generator: Generator, chooser: random.Random) -> list[Caption]:
    """One caption a picture, with parts left out and in varied forms, but in the world's own words.

    Args:
        labels: key -> (n,), complete.
    """
    n = len(next(iter(labels.values())))
    kept = {key: value.clone() for key, value in labels.items()}
    alone = []
    for row in range(n):
        drop = _dropped({key: int(value[row]) for key, value in labels.items() if int(value[row]) >= 0}, chooser)
        for key in drop:
            kept[key][row] = -1
        there = {key: VOCABULARY[key][int(kept[key][row])] for key in kept if int(kept[key][row]) >= 0}
        alone.append(there)
    said = WORLDS[world].caption(kept, generator=generator)
    return [
        marked(_free(world, words, chooser) if chooser.random() < _OWN else text, world)
        for words, text in zip(alone, said, strict=True)
    ]


def _dropped(labels: Mapping[str, int], chooser: random.Random) -> list[str]:
    """The keys that a caption leaves out: none, each at even odds, or all but one."""
    pair = [key for key in ("relation", "subject2", "colour2") if key in labels]
    keys = [key for key in labels if key not in pair]
    draw = chooser.random()
    if pair and chooser.random() < 0.75:
        return [] if draw < 0.6 else [k for k in ("style", "background") if chooser.random() < 0.5]
    if draw < 0.3:
        return pair
    if draw < 0.65:
        return pair + [key for key in keys if chooser.random() < 0.5]
    one = chooser.choice(keys)
    return pair + [key for key in keys if key != one]


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _free(world: str, words: Mapping[str, str], chooser: random.Random) -> str:
    """A canonical string in freer form than the world's own: other orders, lists, templates."""
    pick = chooser.choice
    if len(words) == 1:
        ((key, word),) = words.items()
        forms = (*TEMPLATES[_KINDS.get(key, "attribute")], "{}", "{}")  # type: ignore[index]
        return pick(forms).format(_WORN.get(word, word))
    style, ground = words.get("style"), words.get("background")
    ends = []
    if style:
        forms = ("in {} style", "in the style of {}", "{} style", "{}", "done in {}", "drawn in {} style", "as {} art")
        ends.append(pick(forms).format(style))
    if ground:
        forms = ("on a {} background", "against a {} background", "with a {} background", "{} background", "on {}")
        ends.append(pick(forms).format(ground))
    parts = [_pair(words, chooser)] if "relation" in words else _one(world, words, chooser)
    if chooser.random() < 0.4:
        parts += ends
        chooser.shuffle(parts)
        return ", ".join(parts)
    chooser.shuffle(ends)
    return pick((" ", ", ")).join([", ".join(parts), *ends]) if parts else ", ".join(ends)


def _noun(colour: str | None, subject: str | None, chooser: random.Random) -> str:
    name = subject or "shape"
    if colour is None:
        return chooser.choice((_article(name), _article(name), f"one {name}", f"the {name}", name))
    after = ("{} in {}", "{} coloured {}", "{} that is {}", "{} , {}")
    if chooser.random() < 0.3:
        return _article(chooser.choice(after).format(name, colour))
    return chooser.choice((_article(f"{colour} {name}"), f"the {colour} {name}", f"{colour} {name}"))


def _pair(words: Mapping[str, str], chooser: random.Random) -> str:
    """Two subjects, either one first."""
    things = [(words.get("colour"), words.get("subject")), (words.get("colour2"), words.get("subject2"))]
    relation = words["relation"]
    draw = chooser.random()
    if draw < 0.4:
        things.reverse()
        relation = {"left of": "right of", "above": "below"}[relation]
    elif draw < 0.7:
        chooser.shuffle(things)
        relation = "and"
    if relation in ("left of", "right of"):
        relation = chooser.choice((relation, f"to the {relation}"))
    first, second = (_noun(*thing, chooser) for thing in things)
    return f"{first} {relation} {second}"


def _one(world: str, words: Mapping[str, str], chooser: random.Random) -> list[str]:
    """What a caption says of its one subject, in parts."""
    pick = chooser.choice
    if world == "glyphs":
        parts = (
            [_noun(words.get("colour"), words.get("subject"), chooser)] if {"colour", "subject"} & set(words) else []
        )
        if "position" in words:
            parts.append(f"{pick(_PLACES[words['position']])} {words['position']}")
        return parts
    who = words.get("identity")
    forms = ("{}", "a portrait of {}", "the face of {}", "portrait of {}")
    parts = [pick(forms).format(who or "a person")] if who or chooser.random() < 0.7 else []
    worn = [_WORN[words[key]] for key in ("glasses", "hat") if words.get(key) in _WORN]
    chooser.shuffle(worn)
    if worn:
        parts.append(pick(("wearing ", "in ", "with ")) + " and ".join(worn))
    rest = [words[key] for key in ("expression", "glasses", "hat", "pose", "light") if key in words]
    rest = [word for word in rest if word not in _WORN]
    chooser.shuffle(rest)
    return parts + rest


def varied(caption: Caption, chooser: random.Random) -> Caption:
    """The caption, perhaps in other words, behind an opening, or among words that say nothing."""
    return dressed(reworded(caption, chooser) if chooser.random() < 0.45 else caption, chooser)


def dressed(caption: Caption, chooser: random.Random) -> Caption:
    """The caption as it is, perhaps behind an opening or among words that say nothing."""
    if chooser.random() < 0.35:
        caption = _put(caption, 0, chooser.choice(OPENINGS).split())
    if chooser.random() < 0.3:
        for _ in range(chooser.randint(1, 3)):
            caption = _strewn(caption, chooser)
    return caption


def reworded(caption: Caption, chooser: random.Random, rate: float = 0.6) -> Caption:
    """Word by word another word for the same: as many words, the same marks."""
    words = [
        chooser.choice(SYNONYMS[word]) if word in SYNONYMS and chooser.random() < rate else word
        for word in caption.words
    ]
    return replace(caption, words=tuple(words))


def lengthened(caption: Caption, words: int, chooser: random.Random) -> Caption:
    """The caption with words that say nothing put in until it has `words`."""
    while len(caption.words) < words:
        caption = _strewn(caption, chooser)
    return caption


def _strewn(caption: Caption, chooser: random.Random) -> Caption:
    word = nothing(chooser)
    draw = chooser.random()
    if draw < 0.4:
        tail = (f", {_article(word)}", f"with {_article(word)}", f"near the {word}", f", {word}", f"by {word}")
        return _put(caption, len(caption.words), chooser.choice(tail).split())
    if draw < 0.6:
        head = (f"{word} ,", f"the {word} :", f"at the {word} ,", f"{word} and")
        return _put(caption, 0, chooser.choice(head).split())
    return _put(caption, chooser.randint(0, len(caption.words)), [word])


def _put(caption: Caption, at: int, words: Sequence[str]) -> Caption:
    return replace(
        caption,
        words=(*caption.words[:at], *words, *caption.words[at:]),
        marks=(*caption.marks[:at], *[None] * len(words), *caption.marks[at:]),
    )


def exchanged(caption: Caption, keys: Sequence[str]) -> Caption | None:
    """A caption of two subjects with words of theirs exchanged; None where it does not name them.

    Args:
        keys: "colour", "subject" or both: the colours alone are then with the wrong subjects.
    """
    said = caption.said
    if not all(key in said and key + "2" in said for key in ("subject", "colour")):
        return None
    words, marks = list(caption.words), list(caption.marks)
    for key in keys:
        one, other = (next(i for i, m in enumerate(marks) if m is not None and m[0] == k) for k in (key, key + "2"))
        first, second = marks[one], marks[other]
        assert first is not None
        assert second is not None
        words[one], words[other] = words[other], words[one]
        marks[one], marks[other] = (first[0], second[1]), (second[0], first[1])
    return replace(caption, words=tuple(words), marks=tuple(marks))


def claims(captions: Sequence[Caption]) -> Tensor:
    """(n, keys + 1) int64: which word each caption claims of each key in the picture's own order, -1 for none.

    The last column is the world: 0 Glyphs, 1 Faces, -1 open.
    """
    rows = torch.full((len(captions), len(KEYS) + 1), -1)
    for row, caption in enumerate(captions):
        said = caption.said
        if said.get("relation") in (2, 3):  # right of, below: the subject named second is the picture's first
            turned = {"subject": "subject2", "colour": "colour2", "subject2": "subject", "colour2": "colour"}
            said = {turned.get(key, key): word for key, word in said.items()} | {"relation": said["relation"] - 2}
        for key, word in said.items():
            rows[row, KEYS.index(key)] = word
        rows[row, -1] = ("glyphs", "faces", "").index(caption.world) if caption.world else -1
    return rows


def true_of(labels: Tensor, claimed: Tensor) -> Tensor:
    """(pictures, captions) bool: whether a caption is true of a picture, as far as it says anything.

    A caption of one subject is true of a picture of two where it fits either; places are not told then.

    Args:
        labels: (pictures, keys + 1), as `claims`, complete.
        claimed: (captions, keys + 1).
    """
    column = {key: i for i, key in enumerate(KEYS)}

    def fits(key: str, own: str | None = None) -> Tensor:
        asked = claimed[None, :, column[key]]
        return (asked < 0) | (asked == labels[:, None, column[own or key]])

    one = fits("subject") & fits("colour")
    other = fits("subject", "subject2") & fits("colour", "colour2")
    crossed = fits("subject2", "subject") & fits("colour2", "colour")
    straight = fits("subject2") & fits("colour2")
    relation = claimed[:, column["relation"]]
    two = (labels[:, column["relation"]] >= 0)[:, None]
    pair, loose = (relation >= 0)[None], (relation == RELATIONS.index("and"))[None]
    pairs = two & ((one & straight & (fits("relation") | loose)) | (loose & crossed & other))
    singles = (one | (two & other)) & (fits("position") | two)
    true = torch.where(pair, pairs, singles)
    for key in KEYS:
        if key not in ("subject", "colour", "subject2", "colour2", "relation", "position"):
            true &= fits(key)
    return true & ((claimed[None, :, -1] < 0) | (claimed[None, :, -1] == labels[:, None, -1]))


def table(world: str, labels: Mapping[str, Tensor]) -> Tensor:
    """(n, keys + 1): labels as `claims` has them."""
    n = len(next(iter(labels.values())))
    columns = [labels[key].long() if key in labels else torch.full((n,), -1) for key in KEYS]
    return torch.stack([*columns, torch.full((n,), ("glyphs", "faces").index(world))], 1)
