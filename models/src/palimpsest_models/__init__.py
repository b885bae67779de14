"""The small models of palimpsest: pipelines, retrain oracles, classifiers and readers of the drawn worlds.

Palimpsest finds them by the entry point `palimpsest.models` and calls them tiny/<name>. Beside the weights lies what
trained them: `python -m palimpsest_models.train --model sd`.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
