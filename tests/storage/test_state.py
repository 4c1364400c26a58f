"""Where this machine remembers what its user did."""

from pathlib import Path

import pytest

from mobileclip.storage import state_folder


@pytest.mark.parametrize("given", [None, "", "a/relative/one"])
def test_it_lies_in_the_home_of_the_user(monkeypatch, tmp_path, given):
    monkeypatch.setenv("HOME", str(tmp_path))
    if given is None:
        monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_STATE_HOME", given)
    assert state_folder() == tmp_path / ".local" / "state" / "mobileclip"


def test_it_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder() == tmp_path / "mobileclip"


def test_there_is_none_without_a_home(monkeypatch):
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", "here")
    assert state_folder() is None
    monkeypatch.setattr(Path, "home", _no_home)
    assert state_folder() is None


def _no_home():
    raise RuntimeError("Could not determine home directory.")
