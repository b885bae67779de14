"""SSD claims, as corrective unlearning uses it, to undo poison of which only a part is known."""

from palimpsest.exam.studies.poison import judge as judge

STUDY = "poison"
