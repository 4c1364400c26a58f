"""Exported programs from strangers: PyTorch runs what stands in them, so that none is opened without trust."""

import contextlib
import shutil

import pytest

from mobileclip.export import verify_export
from mobileclip.export.targets.torch import load_pt2
from tests.errors import fails
from tests.export.hostile import PROGRAMS, make
from tests.export.hostile_folders import sign
from tests.export.models import SHALLOW, exported, seeing

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return exported(seeing(SHALLOW), tmp_path_factory.mktemp("pt2") / "export", target="torch", tower="text")


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_stands_in_a_strangers_program_is_run_with_trust_alone(program, folder, tmp_path, seen):
    """That it is run with trust shows that the files are real ones."""
    theirs = shutil.copytree(folder, tmp_path / "theirs")
    make(program, folder / "text.pt2", theirs / "text.pt2")
    seen.clear()
    with fails(ValueError, "text.pt2"):  # put in place of ours
        verify_export(theirs, trust=True)
    sign(theirs)
    with fails(ValueError, "torch"):
        verify_export(theirs)
    assert not seen
    with contextlib.suppress(ValueError):
        verify_export(theirs, trust=True)
    assert seen


def test_a_copy_of_ours_needs_no_trust(folder, tmp_path):
    assert verify_export(shutil.copytree(folder, tmp_path / "moved")).passed


@pytest.mark.parametrize("cut", [0, 1000, -100])
def test_a_damaged_file_ends_in_a_sentence(folder, tmp_path, cut):
    (tmp_path / "text.pt2").write_bytes((folder / "text.pt2").read_bytes()[:cut])
    with fails(ValueError, "text.pt2"):
        load_pt2(tmp_path / "text.pt2")
