"""The world of drawn people: head and shoulders, each with an identity and free attributes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Generator, Tensor

from palimpsest.worlds.drawing import BACKGROUNDS, STYLES, STYLES_HELD_OUT, render
from palimpsest.worlds.face_identity import (
    GENES,
    HELD_OUT_NAMES,
    NAMES,
    TRAINED_NAMES,
    named_vectors,
    random_vectors,
    unnamed_vectors,
)
from palimpsest.worlds.face_parts import PARTS, Look, compose
from palimpsest.worlds.picture import Pictures

_CHUNK = 32  # people drawn at once: their layers then stay in a core's cache
_MOST_WORDS = 20
# Styles with coarse marks need larger features, as they do on paper.
_BOLD = {"pixel": 0.45, "mosaic": 0.3, "stitch": 0.3, "sketch": 0.3, "halftone": 0.2, "neon": 0.2}
_NAMED = 0.7  # the share of samples that have a name

_DROPPED = ("light", "pose", "hat", "glasses", "expression", "background")  # from captions that are too long
# How a prompt says what is worn.
_WEARING = {
    "glasses": "glasses",
    "sunglasses": "sunglasses",
    "cap": "a cap",
    "beanie": "a beanie",
    "fedora": "a fedora",
}


def _vocabulary() -> dict[str, tuple[str, ...]]:
    return {
        "identity": NAMES,
        "expression": ("neutral", "smiling", "surprised", "frowning"),
        "glasses": ("without glasses", "glasses", "sunglasses"),
        "hat": ("bareheaded", "cap", "beanie", "fedora"),
        "pose": ("facing left", "facing front", "facing right"),
        "light": ("lit from left", "lit from right"),
        "style": tuple(STYLES),
        "background": tuple(BACKGROUNDS),
    }


@dataclass(frozen=True, kw_only=True)
class Faces:
    """Drawn people with a name, an identity vector and free attributes.

    `vocabulary["identity"]` holds 128 names: the first 64 are trained, the others held out. Names belong to
    fixed identity vectors; a picture without a name (label -1) shows somebody else.
    """

    name: str = "faces"
    vocabulary: dict[str, tuple[str, ...]] = field(default_factory=_vocabulary)
    held_out: dict[str, frozenset[str]] = field(
        default_factory=lambda: {"identity": frozenset(HELD_OUT_NAMES), "style": frozenset(STYLES_HELD_OUT)}
    )

    @property
    def dimensions(self) -> int:
        """The length d of an identity vector."""
        return len(GENES)

    def identity_vectors(self, indices: Tensor) -> Tensor:
        """The people behind names: (n,) int64 into `vocabulary["identity"]` -> (n, d) float32 in [0, 1].

        Raises:
            ValueError: an index is outside the names (an unnamed person has no fixed vector).
        """
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < len(NAMES):
            raise ValueError(f"identity indices must be in 0..{len(NAMES) - 1}, got {indices.tolist()}")
        return named_vectors()[indices]

    def sample(
        self, n: int, *, generator: Generator, without: frozenset[str] = frozenset(), held_out: bool = False
    ) -> dict[str, Tensor]:
        """Draw labels: every word of a key equally often, except that half wear no hat and half no glasses.

        Args:
            n: how many pictures.
            generator: CPU.
            without: words that never occur; words of other worlds are ignored.
            held_out: also draw the held-out names and styles.

        Returns:
            Every key of `vocabulary` -> (n,) int64. 30 % have identity -1 (unnamed).

        Raises:
            ValueError: `without` leaves no word under a key.
        """
        labels = {key: self._draw_words(key, n, generator, without, held_out) for key in self.vocabulary}
        unnamed = torch.rand(n, generator=generator) >= _NAMED
        labels["identity"] = labels["identity"].masked_fill(unnamed, -1)
        return labels

    def _draw_words(self, key: str, n: int, generator: Generator, without: frozenset[str], held_out: bool) -> Tensor:
        words = self.vocabulary[key]
        weights = torch.ones(len(words))
        if key in ("glasses", "hat"):
            weights[0] = len(words) - 1
        excluded = without if held_out else without | self.held_out.get(key, frozenset())
        for index, word in enumerate(words):
            if word in excluded:
                weights[index] = 0
        if weights.sum() == 0:
            raise ValueError(f"`without` excludes every word of {key!r}: keep at least one of {', '.join(words)}")
        if not n:
            return torch.zeros(0, dtype=torch.int64)
        return torch.multinomial(weights, n, replacement=True, generator=generator)

    def draw(
        self,
        labels: dict[str, Tensor],
        *,
        generator: Generator,
        captions: list[str] | None = None,
        vectors: Tensor | None = None,
        parts: bool = False,
    ) -> Pictures:
        """Draw people.

        Args:
            labels: key of `vocabulary` -> (n,) int64. A key left out, or -1, is drawn at random, except
                identity: there -1 is an unnamed person, with fresh genes.
            generator: CPU; all that labels leave open comes from it.
            captions: one per picture; made by `caption` where None.
            vectors: (n, d) identity vectors in [0, 1] to draw instead of those of the labels.
            parts: also say where hair, skin, eyes, ... show (`Pictures.parts`); the pictures are the same.

        Returns:
            Pictures with all labels filled in, masks (n, 1, 64, 64) of the person, identity (n, d) as drawn.

        Raises:
            ValueError: labels, captions or vectors of the wrong key, length or range.

        Cost: about 1 ms a picture on one core.
        """
        labels = self._complete(labels, generator)
        identity = labels["identity"]
        n = len(identity)
        if vectors is None:
            fresh = random_vectors(n, generator=generator)
            vectors = torch.where((identity >= 0)[:, None], named_vectors()[identity.clamp_min(0)], fresh)
        if vectors.shape != (n, len(GENES)):
            raise ValueError(f"vectors must be ({n}, {len(GENES)}) for {n} labelled people, got {tuple(vectors.shape)}")
        if captions is None:
            captions = self.caption(labels, generator=generator)
        if len(captions) != n:
            raise ValueError(f"{len(captions)} captions were given for {n} pictures; give one each, or None")
        walls = torch.tensor(list(BACKGROUNDS.values()))[labels["background"]]
        bold = torch.tensor([_BOLD.get(style, 0.0) for style in STYLES])[labels["style"]]
        images, masks = [torch.zeros(0, 3, 64, 64)], [torch.zeros(0, 1, 64, 64)]
        shown = [torch.zeros(0, len(PARTS), 64, 64)]
        for start in range(0, n, _CHUNK):
            part = slice(start, start + _CHUNK)
            look = Look(**{key: labels[key][part] for key in ("expression", "glasses", "hat", "pose", "light")})
            layers = compose(vectors[part], look, bold=bold[part], generator=generator, parts=parts)
            images.append(
                render(
                    labels["style"][part], albedo=layers.albedo, alpha=layers.alpha, ink=layers.ink,
                    background=walls[part], generator=generator,
                )
            )  # fmt: skip
            masks.append(layers.alpha)
            if layers.parts is not None:
                shown.append(layers.parts)
        return Pictures(
            images=torch.cat(images),
            masks=torch.cat(masks),
            labels=labels,
            captions=captions,
            identity=vectors,
            parts=dict(zip(PARTS, torch.cat(shown).split(1, 1), strict=True)) if parts else {},
        )

    def _complete(self, labels: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """Labels with every key, and random words where none was given."""
        unknown = set(labels) - set(self.vocabulary)
        if unknown or not labels:
            raise ValueError(f"labels have keys {sorted(labels)}; use some of {', '.join(self.vocabulary)}")
        lengths = {key: len(value) for key, value in labels.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"labels differ in length: {lengths}; give one index per picture under every key")
        n = next(iter(lengths.values()))
        full = self.sample(n, generator=generator)
        if "identity" not in labels:
            full["identity"] = torch.full((n,), -1, dtype=torch.int64)
        for key, value in labels.items():
            last = len(self.vocabulary[key]) - 1
            if n and not -1 <= int(value.min()) <= int(value.max()) <= last:
                raise ValueError(f"label {key} has {value.unique().tolist()}; use 0..{last}, or -1 for none")
            full[key] = value.long() if key == "identity" else torch.where(value >= 0, value.long(), full[key])
        return full

    def caption(self, labels: dict[str, Tensor], *, generator: Generator) -> list[str]:
        """Say what labels hold, in varied words, leaving out some at random: n strings of <= 20 words."""
        n = len(next(iter(labels.values())))
        keep = {"identity": 0.95, "style": 0.75, "background": 0.7}
        chance = torch.rand(n, len(self.vocabulary), generator=generator)
        form = torch.randint(0, 1 << 20, (n,), generator=generator).tolist()
        captions = []
        for row in range(n):
            words = {}
            for column, key in enumerate(self.vocabulary):
                index = int(labels[key][row]) if key in labels else -1
                if index >= 0 and float(chance[row, column]) < keep.get(key, 0.45):
                    words[key] = self.vocabulary[key][index]
            order = [key for key in _DROPPED if key in words]
            text = _sentence(words, form[row])
            while len(text.split()) > _MOST_WORDS:
                words.pop(order.pop(form[row] % len(order)))
                text = _sentence(words, form[row])
            captions.append(text)
        return captions

    def prompt(self, **words: str) -> str:
        """The one canonical prompt that asks for words, e.g. prompt(identity="Ada", glasses="sunglasses").

        Raises:
            ValueError: a key or word is not in `vocabulary`.
        """
        for key, word in words.items():
            if key not in self.vocabulary:
                raise ValueError(f"Faces has no {key!r}; use some of {', '.join(self.vocabulary)}")
            if word not in self.vocabulary[key]:
                raise ValueError(f"{word!r} is no {key} of Faces; use one of {', '.join(self.vocabulary[key])}")
        return _sentence(words, 0)

    def wordings(self, **words: str) -> tuple[str, ...]:
        """All the ways in which captions say what `prompt(**words)` says, that one first."""
        return tuple(dict.fromkeys((self.prompt(**words), *(_sentence(words, form) for form in range(1, 16)))))

    def read(self, prompt: str) -> dict[str, str]:
        """Which words of the vocabulary a prompt asks for; of two words of one key the first counts."""
        found: dict[str, str] = {}
        for match in _PATTERN.finditer(prompt):
            key, word = _WORDS[match.group()]
            found.setdefault(key, word)
        return found


def _sentence(words: dict[str, str], form: int) -> str:
    """A prompt for words; `form` chooses among equally true ways to say them, 0 is the canonical one."""
    bits = [form >> shift & 1 for shift in range(4)]
    who = words.get("identity", "a person")
    style = words.get("style")
    rest = {key: word for key, word in words.items() if key != "identity"}
    if not rest and bits[0]:
        return who
    if style and bits[1]:  # "a sketch portrait of Ada"
        head, style = f"{style} portrait of {who}", None
        head = f"{'an' if head[0] in 'aeiou' else 'a'} {head}"
    else:
        head = who if bits[0] else f"a portrait of {who}"
    worn = [_WEARING[words[key]] for key in ("glasses", "hat") if words.get(key) in _WEARING]
    parts = [f"wearing {' and '.join(worn[::-1] if bits[2] else worn)}"] if worn else []
    parts += [words[key] for key in ("glasses", "hat") if key in words and words[key] not in _WEARING]
    parts += [words[key] for key in ("pose", "light") if key in words]
    if bits[3]:
        parts.reverse()
    if "expression" in words:
        if words["expression"] == "neutral":
            parts.insert(0, "neutral")
        else:
            head = f"{head} {words['expression']}"
    place = f"in {style} style" if style else ""
    if "background" in words:
        place = f"{place} on a {words['background']} background".strip()
    return ", ".join([head, *parts, *([place] if place else [])])


def identities(group: Literal["trained", "held_out", "unnamed"], n: int) -> Tensor:
    """Identity vectors of people: the first n of a group, (n, d) float32 in [0, 1].

    Args:
        group: "trained" or "held_out" (64 named people each), or "unnamed" (an endless fixed list of others).

    Raises:
        ValueError: an unknown group, or more people than it has.
    """
    if group == "unnamed":
        return unnamed_vectors(n)
    if group not in ("trained", "held_out"):
        raise ValueError(f"no group {group!r} of identities; use trained, held_out or unnamed")
    split = len(TRAINED_NAMES)
    people = named_vectors()[:split] if group == "trained" else named_vectors()[split:]
    if n > len(people):
        raise ValueError(f"{group} has {len(people)} identities, {n} were asked for; use unnamed for more")
    return people[:n]


FACES = Faces()

_WORDS = {word: (key, word) for key, words in FACES.vocabulary.items() for word in words}
# Longer words first, so that "without glasses" is not read as "glasses".
_PATTERN = re.compile(r"\b(?:" + "|".join(re.escape(w) for w in sorted(_WORDS, key=len, reverse=True)) + r")\b")
