"""`executorch_search.py`, run as people run it, says what the model says."""

import shutil

import pytest

from mobileclip.export import ExportSpec, export_model
from tests.examples.running import run_example, write_pictures
from tests.examples.test_onnxruntime_search import TEXTS, cosines_of, expected_cosines
from tests.export.models import SHALLOW, seeing

pytestmark = pytest.mark.slow
SCRIPT = "executorch_search.py"
# ExecuTorch's bindings for Python take tensors of PyTorch, and bring it.
FORBIDDEN = ("mobileclip", "safetensors.torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    spec = ExportSpec(out=tmp_path_factory.mktemp("search") / "executorch", target="executorch")
    return export_model(seeing(SHALLOW), spec)


def test_it_says_what_the_model_says(folder, tmp_path):
    paths = write_pictures(tmp_path, 2)
    done = run_example(SCRIPT, folder, "--pictures", *paths, "--texts", *TEXTS, forbidden=FORBIDDEN)
    assert done.returncode == 0, done.stderr
    # The runtime writes about the processor's cores to standard error, and that is all.
    assert all(line.startswith("[cpuinfo_utils.cpp") for line in done.stderr.splitlines()), done.stderr
    found = cosines_of(done.stdout)
    assert list(found) == [str(path) for path in paths]
    for path, row in zip(paths, expected_cosines(paths, SHALLOW), strict=True):
        for text, cosine in zip(TEXTS, row.tolist(), strict=True):
            assert found[str(path)][text] == pytest.approx(cosine, abs=2e-4)
    assert "pictures for 'a cat', nearest first" in done.stdout


def test_mistakes_are_told(folder, tmp_path):
    (path,) = write_pictures(tmp_path, 1)
    done = run_example(SCRIPT, tmp_path, "--pictures", path, "--texts", "a cat", forbidden=FORBIDDEN)
    assert done.returncode == 2
    assert "make an export: mobileclip export MODEL --target executorch" in done.stderr
    swapped = shutil.copytree(folder, tmp_path / "swapped")
    (swapped / "text.pte").unlink()
    done = run_example(SCRIPT, swapped, "--pictures", path, "--texts", "a cat", forbidden=FORBIDDEN)
    assert done.returncode == 2
    assert "text.pte" in done.stderr
