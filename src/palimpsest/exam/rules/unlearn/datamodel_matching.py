"""Datamodel matching claims to answer as retrained models would."""

from palimpsest.exam.verbs.unlearn import first

MEASURED = "smallest divergence of the forgotten samples' log-odds from retraining's"
judge = first(MEASURED, lambda o: o["divergence"].value)
