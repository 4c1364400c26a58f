"""`litert_search.py`, run as people run it, says what the model says."""

import shutil

import pytest
import torch

import mobileclip
from tests.examples.running import run_example, write_pictures
from tests.examples.test_onnxruntime_search import TEXTS, cosines_of
from tests.export.litert import EXPORT, model

pytest.importorskip("ai_edge_litert")
SCRIPT = "litert_search.py"


def test_it_says_what_the_model_says(tmp_path):
    paths = write_pictures(tmp_path, 2)
    done = run_example(SCRIPT, EXPORT, "--pictures", *paths, "--texts", *TEXTS)
    assert done.returncode == 0, done.stderr
    assert set(done.stderr.splitlines()) <= {"INFO: Created TensorFlow Lite XNNPACK delegate for CPU."}
    clip = mobileclip.ImageTextModel(model())
    images, texts = clip.encode_image([path.read_bytes() for path in paths]), clip.encode_text(list(TEXTS))
    for path, row in zip(paths, images @ texts.T, strict=True):
        found = [cosines_of(done.stdout)[str(path)][text] for text in TEXTS]
        torch.testing.assert_close(torch.tensor(found), row, atol=2e-4, rtol=0)


def test_a_file_that_is_missing_is_told(tmp_path):
    (path,) = write_pictures(tmp_path, 1)
    folder = shutil.copytree(EXPORT, tmp_path / "export")
    (folder / "text.tflite").unlink()
    done = run_example(SCRIPT, folder, "--pictures", path, "--texts", "a cat")
    assert (done.returncode, "text.tflite; copy the export again" in done.stderr) == (2, True)
