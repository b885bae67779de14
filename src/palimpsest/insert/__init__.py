"""Systems that teach a generator a new identity, subject or style."""

from palimpsest.core.verb import Verb

VERB = Verb(
    does="Teach a text-to-image model a new subject, person or style. Writes a patch and its receipt.",
    makes="ModelEdit",
    subject="newcomer",
    default="cat",
    asks=("word", "keep"),
    reads=("references",),
    out="inserted",
    examples=(
        'palimpsest insert "<crown>" --images world:crown --like shape --model tiny/sd --out crown',
        "palimpsest insert sks --images photos --like person --kind identity --model my-model --dry-run",
    ),
)
