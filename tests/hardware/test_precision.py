"""A precision has one name everywhere: that of torch's type, where it has one."""

import pytest
import torch

from mobileclip.hardware import FAST_PRECISIONS, PRECISIONS, WIDE_PRECISIONS, dtype_of


@pytest.mark.parametrize("precision", PRECISIONS)
def test_floating_precisions_are_called_like_their_types(precision):
    if precision.startswith("int"):
        with pytest.raises(KeyError):
            dtype_of(precision)
    else:
        assert dtype_of(precision) is getattr(torch, precision)


def test_every_choice_is_a_precision_that_an_export_may_have():
    assert {*WIDE_PRECISIONS, *FAST_PRECISIONS} <= set(PRECISIONS)
