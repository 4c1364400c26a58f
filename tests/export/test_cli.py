"""`mobileclip export` and `mobileclip verify` as people type them."""

import json
import shutil

import onnx
import pytest
from PIL import Image

from mobileclip.encoders import save_model
from mobileclip.evaluation import BenchmarkSample
from mobileclip.export import bundled_samples, read_contract, read_report
from mobileclip.inference.comparison import LEAST_COSINE
from tests.build.commands import refused, run, worked
from tests.build.image_files import encoded
from tests.evaluation.public_layout import write_benchmark
from tests.export.models import CONVOLUTIONAL, PIXELS, constant


@pytest.fixture(scope="module")
def model_file(shallow, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(shallow, path)
    return path


def samples(images, captions):
    rows = zip(images, captions, strict=True)
    return [BenchmarkSample(key=f"s{row}", image=image, captions=(text,)) for row, (image, text) in enumerate(rows)]


def test_export_and_verify_on_a_data_set(capsys, model_file, tmp_path):
    images = bundled_samples().images[:5]
    write_benchmark(tmp_path / "wds_mine_test", samples(images, ["a cat", "a dog", "a cup", "a cat", "a wall"]))
    out = tmp_path / "out"
    options, tower = ("--data", tmp_path / "wds_mine_test", "--max-images", 4), ("--tower", "image", "--dynamic-batch")
    status, printed, shown = run(capsys, "export", model_file, "--target", "torch", *tower, "-o", out, *options)
    assert status == 0
    assert "writing image.pt2 in float32\nrunning image.pt2: 1/1" in shown
    assert "passed: all 6 acceptance checks" in printed
    assert "image: cosine with float32 over 4 images: at least 1.0000000, median 1.0000000" in printed
    assert "ranking: 100.00% of " in printed
    report = read_report(out)
    assert (report.data, report.image_names) == ("mine", ("s0", "s1", "s2", "s3"))
    assert report.captions == ("a cat", "a dog", "a cup")
    assert read_contract(out).towers[0].input_shape == (None, 3, 64, 64)
    assert "first results agree with float32" in worked(capsys, "verify", out)
    shutil.rmtree(tmp_path / "wds_mine_test")
    labelled = [BenchmarkSample(key=str(row), image=image, label=row % 3) for row, image in enumerate(images)]
    words = {"class_names": ["cat", "dog", "cup"], "templates": ["a photo of a {}", "a {}"]}
    write_benchmark(tmp_path / "wds_mine_test", labelled, **words)
    worked(capsys, "export", model_file, "--target", "torch", "--tower", "text", "-o", tmp_path / "text", *options)
    assert read_report(tmp_path / "text").captions == ("a photo of a cat", "a photo of a dog", "a photo of a cup")


def test_what_cannot_be_read_of_a_data_set_is_counted(capsys, model_file, tmp_path):
    names, listed = [f"{row}.png" for row in range(5)], tmp_path / "mine.jsonl"
    for name, image in zip(names[:4], bundled_samples().images, strict=False):
        (tmp_path / name).write_bytes(image)
    listed.write_text("".join(json.dumps({"image": name, "text": name}) + "\n" for name in names), encoding="utf-8")
    arguments = ("--target", "torch", "--tower", "image", "-o", tmp_path / "out", "--data", listed)
    status, _, err = run(capsys, "export", model_file, *arguments)
    assert status == 0
    assert "left out of the data: 1 samples (missing_image)" in err


def test_a_failing_check_is_status_1_and_the_report_is_kept(capsys, model_file, tmp_path, monkeypatch):
    monkeypatch.setitem(LEAST_COSINE, "float32", 1.1)
    out = tmp_path / "out"
    exporting = ("export", model_file, "--target", "torch", "--tower", "image", "-o", out)
    for command in (exporting, ("verify", out)):
        status, _, err = run(capsys, *command)
        assert (status, "image cosine, minimum is" in err) == (1, True)
        assert not read_report(out).passed


def test_a_model_that_sees_nothing_passes_by_its_numbers_and_rankings_are_said_to_be_unchecked(capsys, tmp_path):
    save_model(constant(CONVOLUTIONAL), tmp_path / "same.safetensors")
    out = tmp_path / "out"
    for command in (("export", tmp_path / "same.safetensors", "--target", "torch", "-o", out), ("verify", out)):
        status, said, err = run(capsys, *command)
        assert (status, "passed: all" in said, "rankings could not be checked" in err) == (0, True, True)
    assert not read_report(out).is_ranked


def test_mistakes_are_status_2(capsys, model_file, plain_onnx, tmp_path):
    refused(capsys, str(plain_onnx), "export", model_file, "-o", plain_onnx)
    refused(capsys, "'tflite'", "export", model_file, "--target", "tflite", "-o", tmp_path / "out")
    refused(capsys, str(tmp_path), "verify", tmp_path)


@pytest.mark.slow
def test_the_ranges_of_int8_come_from_the_data_set_that_the_command_names(capsys, model_file, tmp_path):
    black = encoded(Image.new("RGB", (80, 80)), "PNG")
    write_benchmark(tmp_path / "wds_black_test", samples([black] * 2, ["black", "blacker"]))
    out = tmp_path / "out"
    options = ("--precision", "int8", "--tower", "image", "-o", out, "--calibration", tmp_path / "wds_black_test")
    run(capsys, "export", model_file, *options)
    assert read_report(out).data == "bundled", "measured on what it would be measured on without"
    scale = max(mean / std for mean, std in zip(PIXELS.mean, PIXELS.std, strict=True)) / 255
    stored = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(out / "image.onnx").graph.initializer]
    assert any(one.size == 1 and float(one.item()) == pytest.approx(scale) for one in stored), "black pixels"
