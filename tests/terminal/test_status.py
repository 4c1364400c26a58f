"""One rule for the exit status of commands that leave something out."""

from contextlib import nullcontext

import pytest

from mobileclip.terminal import conclude


@pytest.mark.parametrize(
    ("left_out", "strict", "done", "status"),
    [
        (0, False, 3, None),
        (0, True, 3, None),
        (1, False, 3, None),
        (["torn.png"], False, 3, None),
        (1, True, 3, 1),
        (["torn.png"], True, 3, 1),
        (1, False, 0, 1),
        (0, True, [], 1),
    ],
)
def test_what_is_left_out_fails_where_that_is_asked_for_or_nothing_was_done(left_out, strict, done, status):
    with pytest.raises(SystemExit) if status else nullcontext() as ended:
        conclude(left_out=left_out, strict=strict, done=done)
    assert ended is None or ended.value.code == status
