"""How much work each unlearner gets in the exam: parameters found on requests that the exam does not judge.

Chosen on a small CIFAR network for the class "ship" and, for regressors, on the ink of scikit-learn's digits, each
well under a twentieth of what training the network costs. What is not named keeps its default.
"""

from __future__ import annotations

from typing import Any

CLASS: dict[str, dict[str, Any]] = {
    "unlearn/boundary_expanding": {"half": True, "steps": 60, "batch": 64, "lr": 1e-4},
    "unlearn/boundary_shrink": {"half": True, "steps": 50, "batch": 64, "lr": 1e-5},
    "unlearn/concept_inference": {"half": True, "steps": 25, "batch": 128, "lr": 1e-3, "look": 3000},
    "unlearn/datamodel_matching": {"half": True, "steps": 25, "batch": 128, "lr": 1e-3, "look": 6000, "clip": 5.0},
    "unlearn/duck": {"half": True, "steps": 25, "batch": 128, "lr": 2e-4, "centroids": 3000},
    "unlearn/finetune": {"half": True, "steps": 60, "batch": 128, "lr": 6e-3},
    "unlearn/flat": {"half": True, "steps": 30, "batch": 64, "lr": 1.8e-4},
    "unlearn/gradient_ascent": {"half": True, "steps": 32, "batch": 64, "lr": 7e-4},
    "unlearn/gradient_collision": {"half": True, "steps": 10, "batch": 128, "lr": 5e-4, "weight": 10.0},
    "unlearn/l1_sparse": {"half": True, "steps": 60, "batch": 128, "lr": 6e-3, "gamma": 5e-5},
    "unlearn/laf": {
        "half": True,
        "steps": 25,
        "batch": 128,
        "lr": 3e-5,
        "align_weight": 5.0,
        "look": 3000,
        "vae_steps": 150,
    },
    "unlearn/neg_grad_plus": {"half": True, "steps": 25, "batch": 128, "lr": 2e-3, "beta": 0.95},
    "unlearn/prune_first": {"sparsity": 0.5, "settings": "half=True steps=60 batch=128 lr=0.006"},
    "unlearn/random_label": {"half": True, "steps": 25, "batch": 128, "lr": 1e-3},
    "unlearn/salun": {"half": True, "steps": 25, "batch": 128, "lr": 1e-3},
    "unlearn/scar": {"half": True, "steps": 30, "batch": 128, "lr": 1e-4, "keep_weight": 20.0, "look": 3000},
    "unlearn/ssd": {"half": True, "reference": 5000, "select": 40.0},
    "unlearn/upcore": {"unlearner": "gradient_ascent", "settings": "half=True steps=32 batch=64 lr=0.0007"},
}
"""Where a whole class is forgotten, by system."""

VALUES: dict[str, dict[str, Any]] = {
    "unlearn/blindspot": {"augment": "none", "batch": 64, "steps": 100, "lr": 3e-4, "weight": 0.1},
    "unlearn/gaussian_amnesiac": {"augment": "none", "batch": 64, "steps": 60, "lr": 1e-4},
    "unlearn/retrain": {"augment": "none", "epochs": 20, "lr": 0.01},
}
"""Where a regressor forgets samples, by system."""
