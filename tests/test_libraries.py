"""The lines of `docs/libraries.md` run as they stand there, in the libraries that are installed, on a small model."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from mobileclip.cli import main as command_line
from mobileclip.data import write_shards
from mobileclip.encoders import save_model
from tests.encoders.small import randomised
from tests.interop.models import DUAL, PHOTO
from tests.test_pages import PAGES, blocks, photographs, ran

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
LIBRARIES = PAGES["docs/libraries.md"]
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", LIBRARIES, re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the lines name: models that the first commands wrote, a photo, and shards."""
    place = tmp_path_factory.mktemp("libraries")
    with pytest.MonkeyPatch.context() as patch:
        shutil.copy(PHOTO, place / "photo.png")
        Image.open(place / "photo.png").convert("RGB").save(place / "photo.jpg")
        patch.chdir(place)
        save_model(randomised(DUAL), "mine.safetensors")
        for line in blocks(LIBRARIES, "")[0].splitlines():
            command_line(line.partition("#")[0].split()[1:])
        write_shards("shards", map(photographs, range(8)), samples_per_shard=4)
    return place


@pytest.mark.parametrize("title", [title for title, text in SECTIONS.items() if blocks(text, "python")])
def test_a_librarys_lines_run(title, place, monkeypatch):
    pytest.importorskip(title.lower().replace("-", "_"))
    monkeypatch.chdir(place)
    (code,) = blocks(SECTIONS[title], "python")
    names = ran("docs/libraries.md", code)
    if title in ("transformers", "sentence-transformers"):
        assert tuple(names["scores"].shape) == (1, 2)
    if "batch" in names:
        assert len(names["batch"].keys) == 4
    if title == "timm":
        assert names["encoder"].num_classes == DUAL.image.embedding_dim


def test_the_example_for_mteb_runs(place):
    pytest.importorskip("mteb")
    command = [sys.executable, "examples/python/mteb_task.py", str(place / "mine")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert re.search(r"^DrawnShapesZeroShot: accuracy [01]\.\d{3}, by chance 0\.125$", said.stdout, re.MULTILINE)
