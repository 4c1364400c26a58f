"""Where this machine remembers what its user did."""

from pathlib import Path

import pytest

from mobileclip.storage import state_folder


@pytest.mark.parametrize(
    ("given", "where"),
    [
        *((unused, "home/.local/state/mobileclip") for unused in (None, "", "a/relative/one")),
        ("/elsewhere", "/elsewhere/mobileclip"),
    ],
)
def test_it_lies_in_the_home_of_the_user_or_where_the_environment_says(monkeypatch, tmp_path, given, where):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_STATE_HOME")
    if given is not None:
        monkeypatch.setenv("XDG_STATE_HOME", given)
    assert state_folder() == tmp_path / where


def test_there_is_none_without_a_home(monkeypatch):
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "here")
    assert state_folder() is None

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert state_folder() is None
