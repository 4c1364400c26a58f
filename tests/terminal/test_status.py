"""One rule for the exit status of commands that leave something out."""

import pytest

from mobileclip.terminal import conclude


@pytest.mark.parametrize(
    ("left_out", "strict", "done", "fails"),
    [
        (0, False, 3, False),
        (0, True, 3, False),
        (1, False, 3, False),
        (["torn.png"], False, 3, False),
        (1, True, 3, True),
        (["torn.png"], True, 3, True),
        (1, False, 0, True),
        (0, True, [], True),
    ],
)
def test_what_is_left_out_fails_where_that_is_asked_for_or_nothing_was_done(left_out, strict, done, fails):
    if not fails:
        conclude(left_out=left_out, strict=strict, done=done)
        return
    with pytest.raises(SystemExit) as ended:
        conclude(left_out=left_out, strict=strict, done=done)
    assert ended.value.code == 1
