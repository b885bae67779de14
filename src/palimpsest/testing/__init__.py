"""The public conformance suite: hold your own systems, hosts and probes to the laws that ours obey."""

from palimpsest.testing.conformance import (
    changed_tensors,
    check_combine,
    check_edit,
    check_host,
    check_method,
    check_probe,
    quick,
)

__all__ = ["changed_tensors", "check_combine", "check_edit", "check_host", "check_method", "check_probe", "quick"]
