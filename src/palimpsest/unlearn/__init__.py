"""Systems that make a classifier, encoder or regressor forget a class, an identity or given samples."""

from palimpsest.core.verb import Verb

VERB = Verb(
    does="Make a classifier forget a class, an identity or given samples. Writes patch, deletion record and receipt.",
    makes="ModelEdit",
    subject="classifier",
    default="salun",
    asks=("forget",),
    reads=("forget", "retain"),
    out="unlearned",
    examples=("palimpsest unlearn --model my-classifier --data photos --forget class:cat --out no-cat",),
)
