"""What an error of a worker says, and when its origin is logged: where it is not for people."""

import logging

import pytest

from mobileclip.engines import fatal_of, reason_of


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("no such\n  teacher"), "no such teacher"),
        (OSError("the disk is away"), "the disk is away"),
        (RuntimeError("shapes differ"), "RuntimeError: shapes differ"),
        (ValueError(""), "ValueError: "),
        (OSError("https://me:secret@host/a?token=x failed"), "https://host/a?... failed"),
    ],
)
def test_a_reason_is_a_line(error, reason):
    assert reason_of(error) == reason


@pytest.mark.parametrize(
    ("error", "said", "is_logged"),
    [
        (ValueError("no such teacher"), "no such teacher", False),
        (OSError("the disk is away"), "a worker failed to start: the disk is away", False),
        (ImportError("needs ray"), "a worker failed to start: ImportError: needs ray", False),
        (RuntimeError("shapes differ"), "a worker failed to start: RuntimeError: shapes differ", True),
    ],
)
def test_an_error_that_is_not_for_people_is_logged_with_its_origin(error, said, is_logged, caplog):
    with caplog.at_level(logging.WARNING):
        assert fatal_of(error) == said
    assert [record.exc_info[1] for record in caplog.records] == ([error] if is_logged else [])
