"""Glyphs: one or two coloured subjects in a style on a background, with words for all of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from palimpsest.worlds import subjects
from palimpsest.worlds.drawing import (
    BACKGROUNDS,
    COLOURS,
    SIZE,
    STYLES,
    STYLES_HELD_OUT,
    contour,
    coverage,
    grid,
    place,
    render,
    uniform,
)
from palimpsest.worlds.picture import Pictures

_SUBJECTS = tuple(subjects.SHAPES)
_HELD_OUT_SUBJECTS = frozenset({"crown", "leaf", "bell", "cat", "hourglass", "butterfly"})
# Where a single subject stands, frame units, y down.
_PLACES = {
    "centre": (0.0, 0.0),
    "left": (-0.34, 0.0),
    "right": (0.34, 0.0),
    "top": (0.0, -0.34),
    "bottom": (0.0, 0.34),
}
_PLACE_WORDS = {
    "centre": "in the centre",
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
}
_RELATIONS = {"left of": ((-0.49, 0.0), (0.49, 0.0)), "above": ((0.0, -0.49), (0.0, 0.49))}
_TWO_RATE = 0.15
_KEEP = {"subject": 0.97, "colour": 0.9, "style": 0.85, "background": 0.7, "position": 0.5}
_MIN_CONTRAST = 0.235


def _vocabulary() -> dict[str, tuple[str, ...]]:
    return {
        "subject": _SUBJECTS,
        "colour": tuple(COLOURS),
        "style": STYLES,
        "background": tuple(BACKGROUNDS),
        "position": tuple(_PLACES),
        "relation": tuple(_RELATIONS),
        "subject2": _SUBJECTS,
        "colour2": tuple(COLOURS),
    }


def _held_out() -> dict[str, frozenset[str]]:
    return {"subject": _HELD_OUT_SUBJECTS, "subject2": _HELD_OUT_SUBJECTS, "style": STYLES_HELD_OUT}


def _oklab(rgb: Tensor) -> Tensor:
    """(n, 3) sRGB in [0, 1] -> (n, 3) Oklab, where distance is about perceived difference (Ottosson 2020)."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_cones = torch.tensor(
        [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]], dtype=rgb.dtype
    )
    to_lab = torch.tensor(
        [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]], dtype=rgb.dtype
    )
    return (linear @ to_cones.T).clamp(min=0) ** (1 / 3) @ to_lab.T


def visible() -> Tensor:
    """(colours, backgrounds) bool: which subject colour is easily seen on which background."""
    colours, grounds = torch.tensor(list(COLOURS.values())), torch.tensor(list(BACKGROUNDS.values()))
    return torch.cdist(_oklab(colours), _oklab(grounds)) >= _MIN_CONTRAST


def _balanced(allowed: Tensor) -> Tensor:
    """Joint probabilities on the allowed pairs with marginals as even as they can be (Sinkhorn), sum 1."""
    table = allowed.double()
    for _ in range(200):
        table = table / table.sum(1, keepdim=True).clamp(min=1e-12)
        table = table / table.sum(0, keepdim=True).clamp(min=1e-12)
    return table / table.sum()


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


@dataclass(frozen=True, kw_only=True)
class Glyphs:
    """The Glyphs world.

    `vocabulary` maps a label key to its words. `subject2` and `colour2` repeat the words of `subject` and
    `colour` for the second subject of a scene; every other word occurs under one key only.
    """

    name: str = "glyphs"
    vocabulary: dict[str, tuple[str, ...]] = field(default_factory=_vocabulary)
    held_out: dict[str, frozenset[str]] = field(default_factory=_held_out)

    def sample(
        self, n: int, *, generator: Generator, without: frozenset[str] = frozenset(), held_out: bool = False
    ) -> dict[str, Tensor]:
        """Draw random labels, even over words; subject colours that would not show on the background are left out.

        15 % of the pictures have two subjects (never the same word or colour twice, position -1); in the others
        `subject2`, `colour2` and `relation` are -1.

        Args:
            without: words that never occur; words of other worlds change nothing.
            held_out: draw the held-out words too.

        Returns:
            key -> (n,) int64.

        Raises:
            ValueError: `without` leaves a key no word.
        """
        two = torch.rand(n, generator=generator) < _TWO_RATE
        absent = torch.full((n,), -1)
        labels = {key: absent.clone() for key in self.vocabulary}
        return self._complete(labels, two, self._allowed(without, held_out), generator)

    def draw(self, labels: dict[str, Tensor], *, generator: Generator, captions: list[str] | None = None) -> Pictures:
        """Draw labelled pictures. Size, place, turn, shade and grain vary; a missing label or -1 is filled at random.

        Args:
            labels: key -> (n,) int64; a picture has two subjects where any of subject2, colour2, relation is >= 0.
            captions: kept as they are; without them `caption` writes them.

        Returns:
            Pictures whose labels are complete.

        Raises:
            ValueError: an unknown key, or an index outside its vocabulary.
        """
        labels = self._checked(labels)
        n = len(labels["subject"])
        two = (labels["subject2"] >= 0) | (labels["colour2"] >= 0) | (labels["relation"] >= 0)
        labels = self._complete(labels, two, self._allowed(frozenset(), False), generator)
        if captions is None:
            captions = self.caption(labels, generator=generator)
        centres, scales = self._layout(labels, two, generator)
        albedo = self._shaded(COLOURS, labels["colour"], 0.035, generator)[:, :, None, None].expand(-1, -1, SIZE, SIZE)
        background = self._shaded(BACKGROUNDS, labels["background"], 0.02, generator)
        masks = torch.zeros(n, 2, SIZE, SIZE)
        masks[:, 0], ink = self._silhouette(labels["subject"], centres[:, 0], scales, generator)
        rows = two.nonzero().squeeze(1)
        if len(rows):
            masks[rows, 1], second = self._silhouette(
                labels["subject2"][rows],
                centres[rows, 1],
                scales[rows] * uniform(len(rows), 0.93, 1.07, generator=generator),
                generator,
            )
            colour = self._shaded(COLOURS, labels["colour2"][rows], 0.035, generator)[:, :, None, None]
            albedo = albedo.contiguous()
            albedo[rows] = torch.lerp(
                albedo[rows], colour.expand(-1, -1, SIZE, SIZE), self._second_side(labels["relation"][rows])
            )
            ink[rows] = torch.maximum(ink[rows], second)
        alpha = masks.amax(1, keepdim=True)
        images = render(
            labels["style"], albedo=albedo, alpha=alpha, ink=ink[:, None], background=background, generator=generator
        )
        return Pictures(images=images, masks=masks, labels=labels, captions=captions)

    def caption(self, labels: dict[str, Tensor], *, generator: Generator) -> list[str]:
        """Write one caption a picture; some attributes are left out at random, none is untrue. At most 20 words."""
        n = len(next(iter(labels.values())))
        said = torch.rand(n, len(_KEEP), generator=generator) < torch.tensor(list(_KEEP.values()))
        forms = torch.randint(0, 5, (n,), generator=generator).tolist()
        columns = {key: value.tolist() for key, value in labels.items()}
        captions = []
        for row, keep in enumerate(said.tolist()):
            kept = dict(zip(_KEEP, keep, strict=True))
            words = {
                key: self.vocabulary[key][index[row]]
                for key, index in columns.items()
                if index[row] >= 0 and kept.get(key, kept.get(key.rstrip("2"), True))
            }
            captions.append(self._phrase(words, forms[row]))
        return captions

    def prompt(self, **words: str) -> str:
        """The one canonical prompt for the given words, for example `prompt(subject="star", style="sketch")`.

        Raises:
            ValueError: an unknown key or a word that is not in its vocabulary.
        """
        for key, word in words.items():
            if key not in self.vocabulary:
                raise ValueError(f"Glyphs has no label {key!r}; it has {', '.join(self.vocabulary)}")
            if word not in self.vocabulary[key]:
                raise ValueError(f"{word!r} is no {key} of Glyphs; use one of {', '.join(self.vocabulary[key])}")
        if ("relation" in words) != ("subject2" in words or "colour2" in words):
            raise ValueError("a second subject and its relation come together; give relation and subject2 (or colour2)")
        return self._phrase(words, 0)

    def wordings(self, **words: str) -> tuple[str, ...]:
        """All the ways in which captions say what `prompt(**words)` says, that one first."""
        return tuple(dict.fromkeys((self.prompt(**words), *(self._phrase(words, form) for form in range(1, 5)))))

    def read(self, prompt: str) -> dict[str, str]:
        """The words of the vocabulary that a prompt asks for, by key; what it does not mention is absent."""
        text = prompt.lower()
        found: dict[str, str] = {}
        parts = re.split(r"\b(left of|above)\b", text, maxsplit=1)
        if len(parts) == 3:
            found["relation"] = parts[1]
        for part, suffix in zip(parts[::2], ("", "2"), strict=False):
            for token in re.findall(r"[a-z]+", part):
                for key in ("subject", "colour", "style", "background", "position"):
                    if token in self.vocabulary[key]:
                        found.setdefault(key + suffix if key in ("subject", "colour") else key, token)
        return found

    def _phrase(self, words: dict[str, str], form: int) -> str:
        """One of five forms; 0 is the canonical one."""
        style = words.get("style")
        first = [words.get("colour"), words.get("subject", "shape")]
        ground = f"on {_article(words['background'])} background" if "background" in words else None
        where = _PLACE_WORDS[words["position"]] if "position" in words else None
        second = None
        if "relation" in words:
            other = " ".join(filter(None, [words.get("colour2"), words.get("subject2", "shape")]))
            second = f"{words['relation']} {_article(other)}"
            if form in (1, 3):
                second = second.replace("left of", "to the left of")

        def noun(*adjectives: str | None) -> str:
            return " ".join(filter(None, [_article(" ".join(filter(None, [*adjectives, *first]))), second]))

        in_style = f"in {style} style" if style else None
        if form == 1 and second is None:
            return ", ".join(filter(None, [" ".join(filter(None, [noun(style), ground])), where]))
        if form == 2 and style:
            return " ".join(filter(None, [_article(f"{style} picture of {noun()}"), where, ground]))
        if form == 3:
            tags = [style, noun(), where, f"{words['background']} background" if ground else None]
            return ", ".join(filter(None, tags))
        if form == 4 and where:
            return " ".join(filter(None, [f"{where},", noun(), ground, in_style]))
        return ", ".join(filter(None, [" ".join(filter(None, [noun(), in_style, ground])), where]))

    def _allowed(self, without: frozenset[str], held_out: bool) -> dict[str, Tensor]:
        """key -> (words,) bool."""
        allowed = {}
        for key, words in self.vocabulary.items():
            barred = without if held_out else without | self.held_out.get(key, frozenset())
            allowed[key] = torch.tensor([word not in barred for word in words])
            if not allowed[key].any():
                raise ValueError(f"`without` leaves no {key} to draw; leave at least one of {', '.join(words)}")
        return allowed

    def _checked(self, labels: dict[str, Tensor]) -> dict[str, Tensor]:
        """All keys, int64, -1 where nothing was given."""
        unknown = set(labels) - set(self.vocabulary)
        if unknown or not labels:
            raise ValueError(f"unknown labels {sorted(unknown)}; give some of {', '.join(self.vocabulary)}")
        n = len(next(iter(labels.values())))
        checked = {}
        for key, words in self.vocabulary.items():
            value = labels.get(key, torch.full((n,), -1)).long()
            if value.shape != (n,) or (n and not -1 <= int(value.min()) <= int(value.max()) < len(words)):
                raise ValueError(f"label {key!r} must be ({n},) with indices from -1 to {len(words) - 1}")
            checked[key] = value
        return checked

    def _complete(
        self, labels: dict[str, Tensor], two: Tensor, allowed: dict[str, Tensor], generator: Generator
    ) -> dict[str, Tensor]:
        """Fill what is -1: colour and background jointly so that they show, the rest evenly."""
        n = len(two)
        done: dict[str, Tensor] = {}
        for key in ("subject", "style", "position", "relation", "subject2"):
            weights = allowed[key].double().expand(n, -1).clone()
            if key == "subject2" and allowed[key].sum() > 1:
                weights.scatter_(1, done["subject"][:, None], 0.0)
            done[key] = _fill(labels[key], weights, generator)
        pairs = _balanced(visible() & allowed["colour"][:, None] & allowed["background"][None])
        given = (
            _given(labels["colour"], len(COLOURS))[:, :, None] * _given(labels["background"], len(BACKGROUNDS))[:, None]
        )
        joint = (pairs * given).flatten(1) + 1e-12 * given.flatten(1)
        drawn = torch.multinomial(joint, 1, generator=generator).squeeze(1) if n else torch.zeros(0, dtype=torch.long)
        done["colour"], done["background"] = drawn // len(BACKGROUNDS), drawn % len(BACKGROUNDS)
        shows = pairs.T[done["background"]].clone()
        apart = shows.scatter(1, done["colour"][:, None], 0.0)
        done["colour2"] = _fill(labels["colour2"], torch.where(apart.sum(1, keepdim=True) > 0, apart, shows), generator)
        for key in ("subject2", "colour2", "relation"):
            done[key] = torch.where(two, done[key], -1)
        done["position"] = torch.where(two, -1, done["position"])
        return {key: done[key] for key in self.vocabulary}

    def _layout(self, labels: dict[str, Tensor], two: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Centres (n, 2 subjects, 2) and radii (n,) in frame units."""
        n = len(two)
        single = torch.tensor(list(_PLACES.values()))[labels["position"].clamp(min=0)][:, None].expand(-1, 2, -1)
        paired = torch.tensor(list(_RELATIONS.values()))[labels["relation"].clamp(min=0)]
        jitter = (torch.rand(n, 2, 2, generator=generator) - 0.5) * 0.10
        centred = labels["position"] == _vocabulary()["position"].index("centre")
        draw = torch.rand(n, generator=generator)
        scales = torch.where(two, 0.43 + 0.05 * draw, torch.where(centred, 0.66 + 0.16 * draw, 0.58 + 0.06 * draw))
        jitter = torch.where(centred[:, None, None], jitter, jitter * 0.6)
        return torch.where(two[:, None, None], paired, single) + jitter, scales

    def _silhouette(
        self, subject: Tensor, centres: Tensor, scales: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Coverage and ink of one subject a picture, (n, h, w) each, read from the atlas of distances."""
        n = len(subject)
        turn = uniform(n, -0.21, 0.21, generator=generator)  # +-12 degrees
        u, v = place(*grid(), centre=centres, scale=scales, angle=turn)
        points = torch.stack([u, v], -1) / subjects.REACH
        pages = subjects.atlas()[subject]
        distances = F.grid_sample(pages, points, padding_mode="border", align_corners=False)
        body, details = (distances * scales[:, None, None, None]).unbind(1)
        half_width = (0.018 + 0.02 * scales)[:, None, None]
        alpha = coverage(body)
        inner = torch.minimum(coverage(details), alpha)
        return alpha, torch.maximum(coverage(contour(body + half_width * 0.6, half_width)), inner)

    def _shaded(
        self, palette: dict[str, tuple[float, float, float]], index: Tensor, spread: float, generator: Generator
    ) -> Tensor:
        """(n, 3) palette colours, each a little off."""
        off = (torch.rand(len(index), 3, generator=generator) - 0.5) * 2 * spread
        return (torch.tensor(list(palette.values()))[index] + off).clamp(0, 1)

    def _second_side(self, relation: Tensor) -> Tensor:
        """(n, 1, h, w): 1 in the second subject's half of the frame, 0 in the first's, a short ramp between."""
        x, y = grid()
        toward = torch.where((relation == 0)[:, None, None], x, y)
        return (0.5 + toward / 0.16).clamp(0, 1)[:, None]


def _given(index: Tensor, words: int) -> Tensor:
    """(n, words): 1 where a label allows the word, all ones where it is -1."""
    return torch.where((index < 0)[:, None], 1.0, F.one_hot(index.clamp(min=0), words).double())


def _fill(index: Tensor, weights: Tensor, generator: Generator) -> Tensor:
    """`index`, with -1 replaced by a draw from the row's weights."""
    if not len(index):
        return index
    drawn = torch.multinomial(weights, 1, generator=generator).squeeze(1)
    return torch.where(index < 0, drawn, index)


GLYPHS = Glyphs()
