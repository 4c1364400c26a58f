"""Names and tests that a commit takes away are told, unless its title says so."""

import json
import os
import shutil
import subprocess

import pytest

import mobileclip
from mobileclip.blocks import Attention
from tests.leaving import ROOT, files_here, is_named, losses, lost_tests, main, named_tests
from tests.names import FILE
from tests.public_names import RECORDED, public_names

ROOM = """
from .inner import Cake, bake as cook
from lib.elsewhere import Thing

if True:
    LIMIT: int = 3
__all__ = ["LIMIT", "Cake", "Thing", "cook"]
"""
INNER = """
class Food:
    grams: int = 3
    _secret = 1
    def eat(self, cut_off, *, slowly=False): ...
    def _hidden(self): ...

class Cake(Food):
    def __init__(self, icing):
        self.icing, self.candles = icing, 3
        self._plate = None

def bake(cake, /, minutes, *, _private=None): ...
def helper(): ...
"""
PROJECT = '[project.scripts]\ncommand = "a:b"\n[project.optional-dependencies]\nonnx = ["onnx"]\n'
TESTS = """
def test_one(): ...
async def test_two(): ...
if True:
    class TestMany:
        def test_one(self): ...
        def helper(self): ...
class Contract:
    def test_gradients(self): ...
"""
TREE = {
    "mobileclip/room/__init__.py": ROOM,
    "mobileclip/room/inner.py": INNER,
    "pyproject.toml": PROJECT,
    "recipes/train_s2.py": "",
    "tests/test_a.py": TESTS,
    RECORDED: json.dumps({"commands": {"mobileclip embed": ["--append"]}, "registries": {"model": ["s0"]}}),
}
NAMES = {
    "mobileclip.room",
    "mobileclip.room.LIMIT",
    "mobileclip.room.Thing",
    "mobileclip.room.cook",
    "mobileclip.room.cook.minutes",
    "mobileclip.room.Cake",
    *(f"mobileclip.room.Cake.{name}" for name in ("candles", "icing", "grams", "eat", "eat.cut_off", "eat.slowly")),
    "recipes/train_s2.py",
    "script command",
    "extra onnx",
    "mobileclip embed",
    "mobileclip embed --append",
    "model",
    "model s0",
}


def changed(*replaced, tree=TREE):
    """Return the tree with (path, old, new) in place."""
    tree = dict(tree)
    for path, old, new in replaced:
        assert old in tree[path]
        tree[path] = tree[path].replace(old, new)
    return tree


def test_public_names_are_those_of_rooms_with_what_they_take_and_inherit():
    assert public_names(TREE) == NAMES


def test_names_of_this_tree_are_those_that_can_be_imported():
    found = public_names(files_here(ROOT))
    rooms = {"mobileclip.blocks", "mobileclip.encoders", "mobileclip.data", "mobileclip.losses", "mobileclip.export"}
    assert rooms <= found
    assert {f"mobileclip.{name}" for name in mobileclip.__all__} <= found
    assert {"mobileclip.specs.mobileclip_s2", "mobileclip.encoders.load_model.fold"} <= found
    assert {f"mobileclip.blocks.Attention.{name}" for name in ("forward", "num_heads", "qkv")} <= found
    assert hasattr(Attention(8, num_heads=2), "qkv")
    recorded = json.loads(FILE.read_text(encoding="utf-8"))
    assert {f"mobileclip classify {flag}" for flag in recorded["commands"]["mobileclip classify"]} <= found
    assert {"model mobileclip_s0", "extra onnx", "script mobileclip", "recipes/train_s2.py"} <= found
    assert len(found) > 4_000


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        ((RECORDED, "--append", "--add"), ["mobileclip embed --append"]),
        ((RECORDED, "mobileclip embed", "mobileclip put"), ["mobileclip embed"]),
        ((RECORDED, "s0", "s1"), ["model s0"]),
        (("pyproject.toml", "onnx =", "web ="), ["extra onnx"]),
        (("mobileclip/room/__init__.py", '"Cake", ', ""), ["mobileclip.room.Cake"]),
        (("mobileclip/room/inner.py", "def eat", "def _eat"), ["mobileclip.room.Cake.eat"]),
        (("mobileclip/room/inner.py", "slowly", "fast"), ["mobileclip.room.Cake.eat.slowly"]),
        (("mobileclip/room/inner.py", "minutes", "hours"), ["mobileclip.room.cook.minutes"]),
        (("mobileclip/room/inner.py", "grams", "ounces"), ["mobileclip.room.Cake.grams"]),
        (("mobileclip/room/inner.py", "def helper", "def other"), []),
        (("tests/test_a.py", "test_two", "test_three"), ["tests/test_a.py::test_two"]),
        (("tests/test_a.py", "    def test_one", "    def one"), ["tests/test_a.py::TestMany::test_one"]),
        (("tests/test_a.py", "TestMany", "TestFew"), ["tests/test_a.py::TestMany"]),
        (("tests/test_a.py", "test_gradients", "gradients"), ["tests/test_a.py::Contract::test_gradients"]),
    ],
)
def test_what_is_lost_is_named_once(change, lost):
    assert losses(TREE, changed(change)) == lost
    assert losses(changed(change), changed(change)) == []


def test_an_inner_module_may_move():
    moved = {path.replace("inner.py", "other.py"): text for path, text in TREE.items()}
    assert losses(TREE, changed(("mobileclip/room/__init__.py", ".inner", ".other"), tree=moved)) == []


def test_a_room_that_is_lost_is_named_without_what_is_in_it():
    without = {path: text for path, text in TREE.items() if not path.startswith("mobileclip/")}
    assert losses(TREE, without) == ["mobileclip.room"]


def test_a_test_may_move_and_of_two_with_one_name_neither_is_lost_unseen():
    moved = {
        **changed(("tests/test_a.py", "async def test_two(): ...", "")),
        "tests/b/test_b.py": "def test_two(): ...",
    }
    assert lost_tests(TREE, moved) == []
    both = {**TREE, "tests/test_b.py": "def test_one(): ..."}
    assert lost_tests(both, TREE) == ["tests/test_b.py::test_one"]
    contract = {**TREE, "mobileclip/testing/blocks.py": "class Contract:\n    def test_gradients(self): ..."}
    assert lost_tests(TREE, changed(("tests/test_a.py", "test_gradients", "gradients"), tree=contract)) == []
    assert len(named_tests(both)["test_one"]) == 3


@pytest.mark.parametrize(
    ("title", "says"),
    [
        ("Remove `Attention.forward`: nobody called it", True),
        ("Rename `forward`: it is now `run`", True),
        ("Remove `Attention` and `RepMixer`: why", False),  # one of the blocks, another one, or all?
        ("Move `mobileclip.blocks.Attention`: why", True),
        ("Merge `mobileclip.blocks`: why", True),
        ("Remove `mobileclip`: why", False),
        ("Remove `ward`: why", False),
        ("Remove forward: why", False),
        ("A test of `forward`: it is fast", False),
        ("Removes `forward`", False),
    ],
)
def test_a_title_names_what_it_removes(title, says):
    assert is_named("mobileclip.blocks.Attention.forward", [title]) == says


@pytest.mark.parametrize(
    ("lost", "word"),
    [
        ("tests/data/test_a.py::TestB::test_c", "test_c"),
        ("tests/data/test_a.py::TestB::test_c", "tests/data/test_a.py"),
        ("tests/data/test_a.py::TestB::test_c", "tests/data"),
        ("mobileclip embed --append", "--append"),
        ("mobileclip embed --append", "mobileclip embed"),
        ("recipes/train_s2.py", "train_s2.py"),
        ("extra onnx", "onnx"),
    ],
)
def test_every_kind_of_name_can_be_said(lost, word):
    assert is_named(lost, ["A title", f"Remove `{word}`: why"])
    assert not is_named(lost, [f"Remove `other{word}`: why"])


@pytest.fixture
def clone(tmp_path):
    """A repository with a commit, and a function that commits a tree under a title."""
    if not shutil.which("git"):
        pytest.skip("there is no git")
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    who = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org"]

    def git(*arguments):
        return subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    def commit(tree, title):
        for folder in ("mobileclip", "tests", "recipes"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)
        for path, text in tree.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text, encoding="utf-8")
        git("add", "--all")
        git("commit", "--quiet", "--allow-empty", "--message", title)
        return git("rev-parse", "HEAD")

    git("init", "--quiet", "--initial-branch", "main")
    commit.git, commit.root = git, tmp_path
    commit(TREE, "The first")
    return commit


FEATURE = {
    **changed(("mobileclip/room/__init__.py", '"cook"', '"cook", "wash"')),
    "tests/test_wash.py": "def test_it_is_clean(): ...",
}


def status(root, *arguments):
    try:
        main(list(arguments), root)
    except SystemExit as leaving:
        return leaving.code
    return 0


def test_a_commit_made_in_an_older_tree_takes_nothing_away_unseen(clone, capsys):
    base = clone(FEATURE, "Cakes are washed")
    clone({**TREE, "recipes/train_s3.py": ""}, "A recipe of S3")
    assert status(clone.root, base) == 1
    said = capsys.readouterr().out
    assert "2 names and tests" in said
    assert "  mobileclip.room.wash\n  tests/test_wash.py::test_it_is_clean\n" in said
    clone(TREE, "Remove `wash`, `test_it_is_clean`: cakes are not washed")
    assert status(clone.root, base) == 0
    assert "2 names and tests" in capsys.readouterr().out


def test_what_is_not_committed_counts(clone):
    assert status(clone.root, "HEAD") == 0
    (clone.root / "tests" / "test_a.py").unlink()
    assert status(clone.root, "HEAD") == 1


def test_without_a_base_it_is_where_the_branch_left_main_or_the_last_tag(clone, capsys):
    assert status(clone.root) == 0
    assert "neither origin/main nor a tag" in capsys.readouterr().out
    clone.git("tag", "v1")
    clone({}, "All of it")
    assert status(clone.root) == status(clone.root, "0" * 40) == 1
    clone.git("update-ref", "refs/remotes/origin/main", "HEAD")
    assert status(clone.root) == 0
    clone.git("update-ref", "refs/remotes/origin/main", clone(FEATURE, "Of somebody else"))
    clone.git("reset", "--quiet", "--hard", "HEAD~")
    assert status(clone.root) == 0  # this branch is behind


def test_a_base_that_is_asked_for_must_be_there(clone):
    assert "there is no commit abcdef in this clone" in status(clone.root, "abcdef")


def test_where_there_is_no_clone_nothing_is_compared(tmp_path, capsys, monkeypatch):
    for path, text in TREE.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    assert status(tmp_path, "HEAD") == 0
    assert "compared with nothing: this is no clone" in capsys.readouterr().out
    monkeypatch.setenv("PATH", "")
    assert status(ROOT, "HEAD") == 0
    assert "compared with nothing: this is no clone" in capsys.readouterr().out


def test_names_that_cannot_be_read_are_refused():
    with pytest.raises(ValueError, match=r"__all__ of mobileclip\.room "):
        public_names(changed(("mobileclip/room/__init__.py", "__all__ = [", "__all__ = names + [")))
