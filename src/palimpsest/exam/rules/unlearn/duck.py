"""DUCK claims the best of its own score."""

from palimpsest.exam.verbs.unlearn import first

judge = first("largest adaptive unlearning score", lambda o: -o["AUS"].value)
