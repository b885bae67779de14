"""Systems that make a generator unable to draw a concept."""

from palimpsest.core.verb import Verb

VERB = Verb(
    does="Make a text-to-image model unable to draw a concept. Writes a patch and its receipt.",
    makes="ModelEdit",
    subject="generator",
    default="spm",
    asks=("target", "keep", "toward"),
    out="erased",
    examples=(
        "palimpsest erase star --model tiny/sd --out no-star",
        "palimpsest erase star,heart --method esd --steps 20 --keep moon,ring --dry-run",
    ),
)
