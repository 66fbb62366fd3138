"""fletcher32.py: the checksum of every content is what its definition gives."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from precision_probe.trace.recording.fletcher32 import fletcher32


def by_definition(content):
    """Fletcher-32 of big-endian words, number by number: 65535 stands for a sum that is a multiple of it."""
    total = of_totals = 0
    for word in np.frombuffer(content + bytes(len(content) % 2), ">u2").tolist():
        total += word
        of_totals += total
    return ((of_totals - 1) % 65535 + 1 if of_totals else 0) << 16 | ((total - 1) % 65535 + 1 if total else 0)


@given(st.binary(max_size=300))
@example(b"")
@example(bytes(7))
@example(b"\xff" * 64)
@example(b"\xff\xff")
def test_by_definition(content):
    assert fletcher32(content) == by_definition(content)


@pytest.mark.parametrize("n_bytes", [2**13 - 1, 2**13, 2**13 + 1, 2**20 - 1, 2**20, 2**20 + 2**13 + 3])
def test_of_many_bytes(n_bytes):
    """Around what is summed at once, of the largest words and of any."""
    for content in (b"\xff" * n_bytes, bytes(n_bytes), np.random.default_rng(n_bytes).bytes(n_bytes)):
        assert fletcher32(content) == by_definition(content)
