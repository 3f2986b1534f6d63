"""Values from untrusted senders."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

#: Texts that are dangerous somewhere: in a database, a log, a terminal, a mail header, a shell, a page.
NASTY = (
    "'; DROP TABLE batches; --",
    '" OR 1=1 --',
    "%s %(x)s {0} {settings} $1 ${PATH}",
    "a\nINFO forged log line",
    "a\r\nBcc: everybody@example.com\r\n\r\nbody",
    "\x1b[2J\x1b]0;title\x07",
    "nul\x00nul",
    "\ud800 half a surrogate",
    "\u202eright to left",
    "a\u2028b\u2029c",
    "<script>alert(1)</script>",
    "=cmd|'/c calc'!A1",
    "../../etc/passwd",
    "é" * 255,
    "x" * 256,
    " ",
    "",
)
NUMBERS = (0, -1, 1, 2**31 - 1, 2**31, 2**63, 10**400, -(10**400))

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from(NUMBERS),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(NASTY),
)
json_values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
