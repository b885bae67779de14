"""Retraining is what the others are measured by."""

ELSEWHERE = "the oracles are its results: the same recipe without what is forgotten"
