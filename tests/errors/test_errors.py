"""Errors are asserted by class and code; what asserts them can fail."""

import pytest

from mobileclip.data import BadSampleError
from mobileclip.storage import StorageError
from tests.errors import fails, fitting, told
from tests.errors.golden import FILE, Known, read, renewed, text_of
from tests.errors.scan import Found
from tests.errors.template import Hole, Template

TOKENS = "tokenizer {name!r} is not known; expected one of {', '.join(known)}"
KNOWN = {
    one.code: one
    for one in (
        Known("data.tokenizer", "data", "ValueError", TOKENS),
        Known("data.tokenizer-file", "data", "ValueError", "tokenizer {name!r} is not known; {path} names it"),
        Known("data.shard", "data", "ValueError", "the shard {path} cannot be read: {error}"),
        Known("data.bad", "data", "BadSampleError", "no_caption: the sample {key} has no caption"),
        Known("data.either", "data", "StorageError | ValueError", "the place {path} is not there"),
        Known("data.short", "data", "ValueError", "{name} is {value}"),
        Known("cli.left", "cli", "SystemExit", "error: nothing was left of it"),
    )
}
SAID = "tokenizer 'klingon' is not known; expected one of clip, siglip"


@pytest.fixture(autouse=True)
def few_known(monkeypatch, request):
    """Tests of what asserts have a golden file of their own."""
    if "whole" not in request.fixturenames:
        monkeypatch.setattr("tests.errors._golden", lambda: KNOWN)


@pytest.fixture
def whole():
    """The golden file of the package."""
    return read()


def raised(error, code, *words, by=None):
    with fails(code, *words, by=by) as caught:
        raise error
    assert caught.value is error


def raise_if_any(error):
    if error is not None:
        raise error


def test_the_golden_file_is_what_the_package_raises(whole):
    """A change of wording is a change of this file, and of no test."""
    assert FILE.read_text(encoding="utf-8") == text_of(renewed(whole).values()), "run `python -m tests.errors`"
    lines = [line for line in FILE.read_text(encoding="utf-8").splitlines() if line.startswith("  ")]
    assert len(lines) == len(whole), "a code is there twice"
    assert len({(one.kind, one.template.skeleton) for one in whole.values()}) == len(whole)


def test_every_wording_is_read_as_it_was_written(whole):
    assert [str(one.template) for one in whole.values()] == [one.message for one in whole.values()]


def test_a_wording_with_braces_and_quotes_in_its_holes():
    text = "{{c}} of {', '.join((f'{{{one}}}' for one in 'a{'))!r:>{width}} and {{}}"
    template = Template.parsed(text)
    assert str(template) == text
    assert template.literals == ("{c} of ", " and {}")
    assert template.parts[1] == Hole("', '.join((f'{{{one}}}' for one in 'a{'))!r:>{width}")


def test_an_error_is_asserted_by_its_code_and_what_it_names():
    raised(ValueError(SAID), "data.tokenizer", "klingon", "clip, siglip")
    raised(UnicodeError(SAID), "data.tokenizer")
    raised(BadSampleError("no_caption", "the sample 7 has no caption"), "data.bad", "7")
    raised(StorageError("the place a/b is not there"), "data.either", "a/b")
    raised(ValueError("the place a/b is not there"), "data.either", "a/b")
    raised(ValueError("x is 3"), "data.short", "x", "3")
    raised(SystemExit("error: nothing was left of it"), "cli.left")


@pytest.mark.parametrize(
    ("error", "asserted", "said"),
    [
        (ValueError(SAID), ("data.shard",), r"it is data\.tokenizer; expected data\.shard: the shard \{path\}"),
        (ValueError("what nobody knows"), ("data.shard",), "it is none that is known; expected data.shard"),
        (ValueError(SAID.replace("known", "there")), ("data.tokenizer",), "it is data.short; expected data.tokenizer"),
        (ValueError(f"{SAID}; x names it"), ("data.tokenizer-file",), r"it is data\.tokenizer; expected data\.tok"),
        (OSError(SAID), ("data.tokenizer",), r"data\.tokenizer is a ValueError; raised was OSError: tokenizer"),
        (
            ValueError("no_caption: the sample 7 has no caption"),
            ("data.bad",),
            "is a BadSampleError; raised was ValueErr",
        ),
        (ValueError(SAID), ("data.tokenizer", "klingon", "vulcan"), r"data\.tokenizer does not name \['vulcan'\]"),
        (ValueError(SAID), ("data.tokenizer", "kling"), r"does not name \['kling'\]"),
        (ValueError(SAID), ("data.tokenizer", "expected"), r"does not name \['expected'\]"),
        (ValueError("what x is 3 for"), ("data.tokenizer",), "expected data.tokenizer"),
        (ValueError("so that x is 3"), ("data.shart",), "has no error of the code 'data.shart'"),
        (None, ("data.shard",), "nothing was raised; expected data.shard"),
    ],
)
def test_another_error_fails(error, asserted, said):
    with pytest.raises(pytest.fail.Exception, match=said), fails(*asserted):
        raise_if_any(error)


def test_what_is_no_error_is_not_caught():
    with pytest.raises(KeyboardInterrupt), fails("data.shard"):
        raise KeyboardInterrupt
    with pytest.raises(SystemExit), fails("data.shard"):
        raise SystemExit(1)


def test_an_error_that_another_reports():
    """Both are asserted where both stand in the message, each with what it names."""
    error = SystemExit(f"error: the shard a.tar cannot be read: {SAID}")
    raised(error, "data.shard", "a.tar", by=SystemExit)
    raised(error, "data.tokenizer", "klingon", "a.tar", by=SystemExit)
    raised(error, "data.tokenizer", "data.shard", "a.tar", by=SystemExit)
    with (
        pytest.raises(pytest.fail.Exception, match=r"does not name \['data\.bad'\]"),
        fails("data.tokenizer", "data.bad", by=SystemExit),
    ):
        raise error
    with pytest.raises(SystemExit), fails("data.shard", by=ValueError):
        raise error


def test_what_a_command_has_written():
    written = "reading\nerror: the shard a.tar cannot be\n   read: no such file\ndone\n"
    told(written, "data.shard", "a.tar", "no such file")
    with pytest.raises(pytest.fail.Exception, match=r"does not name \['b\.tar'\]"):
        told(written, "data.shard", "b.tar")
    with pytest.raises(pytest.fail.Exception, match=r"it is data\.shard; expected data\.tokenizer"):
        told(written, "data.tokenizer")


def test_a_wording_of_few_letters_is_the_whole_of_a_message():
    assert fitting.spans_of(Template.parsed("no {name}"), "no place") == [(0, 3)]
    assert fitting.spans_of(Template.parsed("no {name}"), "there is no place") is None
    assert fitting.spans_of(Template.parsed("{name}: not"), "a: not") == [(1, 6)]
    assert fitting.spans_of(Template.parsed("{name}: not"), "a: not so") is None


def found(room, message, kind="ValueError"):
    return Found(room, kind, message)


def test_a_code_stays_with_its_wording():
    first = renewed({}, [found("data", TOKENS), found("data", "the shard {path} is empty")])
    assert sorted(first) == ["data.shard-empty", "data.tokenizer-known"]
    moved = renewed(
        first, [found("texts", TOKENS.replace("name!r", "wanted")), found("data", "the shard {path} is empty")]
    )
    assert moved["data.tokenizer-known"].room == "texts"
    assert moved.keys() == first.keys()


def test_a_wording_that_changes_keeps_its_code():
    first = renewed({}, [found("data", TOKENS), found("data", "the shard {path} is empty")])
    changed = TOKENS.replace("expected one of", "choose among")
    second = renewed(first, [found("data", changed), found("data", "the shard {path} is empty; write it again")])
    assert {code: one.message for code, one in second.items()} == {
        "data.tokenizer-known": changed,
        "data.shard-empty": "the shard {path} is empty; write it again",
    }


def test_what_is_new_takes_no_code_of_what_is_gone():
    first = renewed({}, [found("data", TOKENS), found("data", "the shard {path} is empty")])
    assert sorted(renewed(first, [found("data", TOKENS)])) == ["data.tokenizer-known"]
    assert sorted(renewed(first, [found("data", "the width is odd")])) == ["data.width-odd"]
    assert sorted(renewed(first, [found("storage", "the shard {path} is empty!")])) == ["storage.shard-empty"]
    again = renewed(
        first, [*(found(one.room, one.message) for one in first.values()), found("data", "no shard is empty")]
    )
    assert sorted(again.keys() - first.keys()) == ["data.shard-empty-2"]


def test_a_code_that_was_chosen_by_hand_is_kept():
    chosen = {"data.klingon": Known("data.klingon", "data", "ValueError", TOKENS)}
    assert list(renewed(chosen, [found("data", TOKENS)])) == ["data.klingon"]
