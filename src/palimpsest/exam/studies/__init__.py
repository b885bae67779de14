"""Comparisons that papers draw between systems, and claims that the verbs' exams do not show."""
