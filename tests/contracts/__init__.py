"""Contract suites: what every part of a kind must do. Those of blocks, encoders and losses are `mobileclip.testing`."""

import pytest

# What an assertion compares is then told as in tests.
pytest.register_assert_rewrite(
    *(f"{__name__}.{kind}" for kind in ("captioners", "engines", "sources", "stores", "targets", "tasks", "teachers"))
)
