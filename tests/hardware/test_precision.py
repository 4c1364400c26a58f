"""A precision has one name everywhere: that of torch's type, where it has one."""

import torch

from mobileclip.hardware import FAST_PRECISIONS, PRECISIONS, WIDE_PRECISIONS, dtype_of
from tests.errors import fails


def test_floating_precisions_are_called_like_their_types():
    for precision in PRECISIONS:
        if precision.startswith("int"):
            with fails(KeyError):
                dtype_of(precision)
        else:
            assert dtype_of(precision) is getattr(torch, precision)
    assert {*WIDE_PRECISIONS, *FAST_PRECISIONS} <= set(PRECISIONS), "every choice is one that an export may have"
