"""Systems that smudge a model."""

from palimpsest.core.verb import Verb

VERB = Verb(does="Smudge a model.", makes="ModelEdit", subject="smudges", default="blot", out="smudged")
