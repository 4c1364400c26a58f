"""Exported programs from strangers: PyTorch runs what stands in them, so that none is opened without trust."""

import contextlib
import shutil

import pytest

from mobileclip.export import ExportSpec, export_model, verify_export
from mobileclip.export.targets.torch import load_pt2
from tests.errors import fails
from tests.export.hostile import PROGRAMS, make
from tests.export.hostile_folders import sign
from tests.export.models import SHALLOW, few_samples, seeing

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    spec = ExportSpec(output=tmp_path_factory.mktemp("pt2") / "export", target="torch", tower="text")
    return export_model(seeing(SHALLOW), spec, samples=few_samples(), show_progress=False)


@pytest.fixture(params=PROGRAMS)
def theirs(request, folder, tmp_path):
    """A stranger's export: a program that is not ours, with its own hash in the contract."""
    copied = shutil.copytree(folder, tmp_path / "theirs")
    make(request.param, folder / "text.pt2", copied / "text.pt2")
    sign(copied)
    return copied


def test_nothing_in_them_is_run(theirs, seen):
    with fails("export.written-elsewhere-whose-runtime", "torch"):
        verify_export(theirs, show_progress=False)
    assert not seen


def test_with_trust_it_is(theirs, seen):
    """The files are real ones: this is what is trusted."""
    with contextlib.suppress(ValueError):
        verify_export(theirs, trust=True, show_progress=False)
    assert seen


def test_a_program_that_was_put_in_place_of_ours_is_not_run(folder, tmp_path, seen):
    copied = shutil.copytree(folder, tmp_path / "moved")
    assert verify_export(copied, show_progress=False).passed
    make("a pickled weight", folder / "text.pt2", copied / "text.pt2")
    with fails("export.file-exported-sha-256", "text.pt2"):
        verify_export(copied, trust=True, show_progress=False)
    assert not seen


@pytest.mark.parametrize("cut", [0, 1000, -100])
def test_a_damaged_file_ends_in_a_sentence(folder, tmp_path, cut):
    (tmp_path / "text.pt2").write_bytes((folder / "text.pt2").read_bytes()[:cut])
    with fails("export.read-pytorch-update-pytorch", "text.pt2"):
        load_pt2(tmp_path / "text.pt2")
