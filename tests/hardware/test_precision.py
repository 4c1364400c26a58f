"""A precision has one name everywhere: that of torch's type, where it has one."""

import torch

from mobileclip.hardware import DTYPES, FAST_PRECISIONS, PRECISIONS, WIDE_PRECISIONS


def test_floating_precisions_are_called_like_their_types():
    assert sorted(DTYPES) == ["bfloat16", "float16", "float32"]
    assert all(dtype is getattr(torch, name) for name, dtype in DTYPES.items())


def test_every_choice_is_a_precision_that_an_export_may_have():
    assert {*WIDE_PRECISIONS, *FAST_PRECISIONS, *DTYPES} <= set(PRECISIONS)
    assert set(WIDE_PRECISIONS) <= set(DTYPES)
