"""Blindspot unlearning is for regressors."""

from palimpsest.exam.studies.values import judge as judge

STUDY = "values"
ELSEWHERE = "is for regressors: see the age-like number of drawn faces"
