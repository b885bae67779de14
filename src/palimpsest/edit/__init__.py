"""Systems that change one thing in pictures and leave everything else as it was."""

from palimpsest.core.verb import Verb

VERB = Verb(
    does="Change one thing in pictures, and nothing else. Writes pictures of the same size and format.",
    makes="ImageEdit",
    subject="edited",
    default="edit_friendly",
    asks=(),
    out="edited",
    examples=(
        "palimpsest edit photos --to glasses --model tiny/portraits --out with-glasses",
        "palimpsest edit photos --to smiling --instead frowning --masks masks --method ddim_inversion --depth 0.6",
    ),
)
