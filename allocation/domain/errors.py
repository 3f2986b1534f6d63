"""Reasons to refuse a command. Each carries a readable text, which is what a sender in any language sees."""

from __future__ import annotations


class AllocationError(Exception):
    """A command broke a rule of the domain."""


class InvalidSku(AllocationError):
    """No product carries this SKU."""


class UnknownBatch(AllocationError):
    """No batch carries this reference."""


class BatchAlreadyExists(AllocationError):
    """A batch of this reference exists with other content."""
