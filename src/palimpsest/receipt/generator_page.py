"""How the page of a generator's receipt is laid out: its sections, the words of its roles, and what its terms mean."""

from __future__ import annotations

from collections.abc import Mapping

from palimpsest.probes.collapse import Collapse
from palimpsest.probes.distance import Distance
from palimpsest.probes.drift import Drift
from palimpsest.probes.judging import AGREEMENT, IMAGINED, MISSED
from palimpsest.probes.matching import Matching
from palimpsest.probes.oracle_gap import GAP, NEVER
from palimpsest.probes.plan import LISTED
from palimpsest.probes.presence import Presence
from palimpsest.probes.reference import Reference
from palimpsest.probes.resurfacing import NAMES
from palimpsest.receipt.subject import Section

ROLES: Mapping[str, tuple[str, str]] = {
    "target": ("Target", "What the edit is about."),
    "neighbour": ("Neighbours", "What lies closest to it in the model, and what was asked to stay."),
    "unrelated": ("Unrelated", "Other kinds of concept. None of it should move."),
    "empty": ("Empty prompt", "What the model draws unasked."),
    LISTED: (
        "Prompts from files",
        "The user's own; the audit did not choose them. ● the judge sees the target, ○ it does not.",
    ),
}
SECTIONS: tuple[Section, ...] = (
    Section(title="shown", form="figures"),
    Section(
        title="Pictures",
        form="pairs",
        note="Above, the untouched model; below, the edited one, with the same prompt and the same seed. ● the "
        "judge sees what was asked for, ○ it does not (before, after).",
    ),
    Section(
        title="Presence",
        readings=("presence",),
        note="In how many pictures a judge sees what their prompt asks for. The ring is the untouched model, the "
        "dot the edited one with its 95 % interval, the band the noise floor: how far two seed sets of the "
        "untouched model lie apart.",
    ),
    Section(
        title="Judges",
        readings=(MISSED, IMAGINED, AGREEMENT),
        note="How far the judges can be trusted. Where the untouched model itself judges, its errors are those on "
        "its own pictures: not seen in pictures that ask for a concept, and seen in pictures that ask for another "
        "of its kind. Where there are several judges: how often each says of a concept what the first one says.",
    ),
    Section(
        title="Drift",
        readings=("pixel drift", "feature drift"),
        note="How far a picture moves when prompt and seed stay.",
    ),
    Section(
        title="Distance",
        readings=Distance.makes,
        note="How far all pictures of a role moved, as distributions.",
    ),
    Section(
        title="Against reference pictures",
        readings=Reference.makes,
        note="How far the pictures of a role are from a folder of pictures that the user named, in features of a "
        "network that the user named. It is the field's FID and KID only where that network is Inception. The "
        "fewer pictures, the larger a Frechet distance: numbers of pictures must be equal to be compared.",
    ),
    Section(
        title="Prompts matched",
        readings=Matching.makes,
        note="How well pictures match the prompts that they were drawn of: 100 times their cosine in CLIP, none "
        "below 0. Erasing is to lower it for the target alone.",
    ),
    Section(
        title="Collapse",
        readings=("collapse",),
        note="The share of pictures that turned into one colour, noise or copies.",
    ),
    Section(
        title="Against a model that never saw it",
        readings=(GAP, NEVER),
        note="The gold standard of forgetting: the same recipe, trained without the target.",
    ),
    Section(
        title="Prompts from files",
        role=LISTED,
        readings=(
            *Presence.makes,
            *Drift.makes,
            *Distance.makes,
            *Reference.makes,
            *Matching.makes,
            *Collapse.makes,
            GAP,
        ),
        note="The user's own prompts, which the audit did not choose: in how many of their pictures a judge sees "
        "the target, whatever they ask for, and how far the pictures moved with the same prompt and seed.",
    ),
    Section(
        title="Resurfacing",
        readings=NAMES,
        note="Presence after an attempt to bring the target back at a stated budget; before: the untouched model, "
        "as it is.",
    ),
    Section(
        title="Neighbours to the eye",
        readings=("closeness",),
        note="How alike the untouched pictures of each concept and of the target are: cosine of the judge's "
        "features, less what all share. Neighbours were chosen by the model's text embeddings before anything was "
        "drawn.",
    ),
    Section(
        title="Leakage",
        readings=("leakage",),
        form="matrix",
        note="Each row holds the pictures that ask for one concept; each column says how many points more or fewer "
        "of them now show another. Framed: the concept that was asked for.",
    ),
    Section(title="Curves", form="curves"),
)
TERMS: tuple[tuple[str, str], ...] = (
    (
        "Noise floor",
        "How far two seed sets of the untouched model lie apart, in 95 of 100 cases. A change below it is one that "
        "a reader of other seeds could not tell from none.",
    ),
    (
        "Interval",
        "95 %: Wilson's for rates, Tango's score interval for same-seed changes of rates, BCa bootstrap, widened "
        "for small numbers, for means. It speaks about other seeds of the same prompts.",
    ),
    (
        "p",
        "The chance of pairs at least as uneven if the edit changed nothing: McNemar's exact test for rates, swaps "
        "within pairs for distances; corrected for the number of concepts (Benjamini and Hochberg; Holm for "
        "collapse).",
    ),
    (
        "The model as its own judge",
        "Where nobody from outside judges, the untouched model does: a picture shows the concept under whose "
        "prompt that model removes noise from it best, among those of one kind and none of them. The edited model "
        "never judges. No outside truth has calibrated it on this model: its errors are known only from its own "
        "pictures, as far as these show what they were asked for, and the limits of presence allow for them. What "
        "the model cannot tell apart, or does not know, it cannot judge.",
    ),
    (
        "Verdict",
        "Changed: p is below 0.05. Unchanged: it is not, and the whole interval of the change lies within the "
        "noise floor. Cannot tell: neither; more pictures are needed.",
    ),
    (
        "Drift",
        "Distance between the same prompt and seed before and after; its floor is the distance to another seed, "
        "that is, to another picture.",
    ),
)
COMPARED: Mapping[str, str] = {
    "before": "target before",
    "target": "target still shown",
    "neighbours": "neighbours, points",
    "unrelated": "unrelated, points",
    "n": "pictures",
    "y": "pictures that still show the target",
    "said": "target shown",
    "x": "points lost by neighbours or unrelated concepts, whichever is more",
}
