"""The small models of palimpsest: pipelines, retrain oracles, classifiers and readers of the drawn worlds.

Palimpsest finds them by the entry point `palimpsest.models` and calls them tiny/<name>. This package holds no code.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
