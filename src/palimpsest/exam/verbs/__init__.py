"""The exams of whole verbs: their fixed work, what its records amount to, the rule for all of their systems."""
