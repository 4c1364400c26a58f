"""What the quickstart tells people to type next runs where its own packages are installed, and nothing else is."""

import re
import sys
from pathlib import Path

from PIL import Image

from examples.quickstart import commands
from mobileclip.collections import Collection, IndexOptions, ModelSource
from mobileclip.extras import DISTRIBUTION
from tests.preloaded import preloaded

ROOT = Path(__file__).parents[3]
# Packages that the platform brings are in no lock.
PLATFORM = ("torch", "torchvision", "triton", "nvidia", "cuda")
# Runs the command, and lets nothing be imported that comes from a package other than those that are named.
WITHOUT_OTHERS = """
import re, sys
from importlib.metadata import packages_distributions

allowed, owners = set(sys.argv.pop(1).split()), packages_distributions()

class Absent:
    def find_spec(self, name, path=None, target=None):
        found = {re.sub("[-_.]+", "-", owner).lower() for owner in owners.get(name.partition(".")[0], ())}
        if found and not found & allowed:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())
from mobileclip.cli import main

sys.exit(main(sys.argv[1:]))
"""


def test_the_pictures_can_be_searched_with_the_packages_of_its_lock(tmp_path):
    index = Collection.create(tmp_path / "held_out.index", ModelSource(model="icons"))
    (tmp_path / "pictures").mkdir()
    # More than are all compared in any case, for which the package that searches is not asked.
    for grey in range(200):
        Image.new("L", (32, 32), grey).save(tmp_path / "pictures" / f"{grey}.png")
    index.add(tmp_path / "pictures", options=IndexOptions(show_progress=False))
    lock = (ROOT / "requirements" / "quickstart.lock").read_text(encoding="utf-8")
    allowed = " ".join((*re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE), *PLATFORM, DISTRIBUTION))
    arguments = ["search", "a red heart", "-k", "3", "--index", str(tmp_path / "held_out.index")]
    found = ("-o", str(tmp_path / "found.html"))
    done = preloaded("torch").call(
        "tests.preloaded:python", "-c", WITHOUT_OTHERS, allowed, *arguments, *found, folder=tmp_path
    )
    assert done.status == 0, done.output
    assert done.output.count(str(tmp_path / "pictures")) == 3
    assert (tmp_path / "found.html").read_text(encoding="utf-8").count("data:image/webp") == 3


def test_a_command_that_the_shell_does_not_find_has_its_path(tmp_path, monkeypatch):
    own, other = tmp_path / ".venv" / "bin", tmp_path / "other"
    for folder in (own, other):
        folder.mkdir(parents=True)
        (folder / "mobileclip").write_text("#!/bin/sh\n", encoding="utf-8")
        (folder / "mobileclip").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(own / "python"))
    for path in (tmp_path, other):
        monkeypatch.setenv("PATH", str(path))
        assert commands.command() == str(Path(".venv") / "bin" / "mobileclip")
    monkeypatch.setenv("PATH", str(own))
    assert commands.command() == "mobileclip"
