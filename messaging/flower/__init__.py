"""Inside Flower: our metrics, our pages, and messages shown as messages.

Flower has no documented hooks for this. Its configuration file runs before it builds its application, whose
list of handlers and settings can still be changed then; a smoke test checks that this still works.
"""

from __future__ import annotations

from messaging.flower.install import install

__all__ = ["install"]
