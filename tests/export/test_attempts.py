"""A tower is written again, with more layers in float32, until it passes its gates, alone and beside the other."""

from io import BytesIO

import attrs
import onnx
import pytest
import torch
from PIL import Image

from mobileclip.cli import main
from mobileclip.data import Tokenizer
from mobileclip.encoders import save_model
from mobileclip.evaluation import BenchmarkSample, write_benchmark
from mobileclip.export import (
    ExportSpec,
    bundled_samples,
    export_model,
    read_contract,
    read_report,
    targets,
    verify_export,
)
from tests.export.models import PIXELS, SHALLOW, TOKENS, TRANSFORMERS, few_samples, pixels, seeing


def outlying(spec, *, norms):
    """A model with large values that nothing uses behind some norms: rounded with them, the others are zero."""
    model = seeing(spec)
    for tower in (model.image_encoder, model.text_encoder):
        layer = tower.layers[0]
        behind = {"attention_norm": layer.attention.qkv, "ffn_norm": layer.ffn.fc1, "norm": tower.project}
        with torch.no_grad():
            for name in norms:
                (tower if name == "norm" else layer).get_submodule(name).weight[0] = 1e4
                behind[name].weight[:, 0] = 0
    return model


@pytest.mark.slow
def test_layers_that_cannot_be_rounded_stay_float(tmp_path):
    spec = ExportSpec(output=tmp_path / "out", precision="int8", tower="text")
    folder = export_model(outlying(TRANSFORMERS, norms=["norm"]), spec)
    (text,) = read_contract(folder).towers
    assert "project" in text.float32
    assert len(text.float32) == 2, "an eighth of the ten layers"
    assert verify_export(folder).towers[0].cosine_minimum > 0.98


def differences(cosines):
    """Of pictures' cosines with captions: between two captions of a picture, and between two pictures of a caption.

    Both as they count for two pictures and two captions: `(pictures, pictures, captions, captions)`, of four queries.
    """
    by_picture, by_caption = cosines[:, :, None] - cosines[:, None], cosines[:, None] - cosines
    shape = (*by_caption.shape[:2], *by_picture.shape[1:])
    four = (by_picture[:, None], by_picture[None], by_caption[..., None], by_caption[:, :, None])
    return torch.stack([one.expand(shape) for one in four])


@pytest.mark.slow
def test_towers_that_pass_alone_and_not_together_are_written_again(tmp_path):
    """On two pictures and captions whose order the rounding of one tower does not turn, and that of both does."""
    model, everything, spec = (
        seeing(SHALLOW),
        bundled_samples(),
        ExportSpec(output=tmp_path / "plain", precision="int8"),
    )
    plain = export_model(model, spec, samples=few_samples(2), calibration=everything)
    towers, embeddings = read_contract(plain).towers, {}
    assert [(tower.tower, tower.float32) for tower in towers] == [("image", ()), ("text", ())]
    for tower, inputs in zip(towers, (pixels(PIXELS), Tokenizer(TOKENS)(everything.captions)), strict=True):
        run = targets["onnx"].open(plain / tower.file, tower)
        rounded = torch.cat([run(row[None])[0] for row in inputs])
        with torch.no_grad():
            embeddings[tower.tower] = (getattr(model, f"encode_{tower.tower}")(inputs, normalize=True), rounded)
    expected, text_alone, image_alone, together = (
        differences(image @ text.T) for image in embeddings["image"] for text in embeddings["text"]
    )
    changed = [(expected.sign() != one.sign()).sum(0) for one in (text_alone, image_alone, together)]
    # Of four queries, one may change by chance.
    turned = (changed[0] <= 1) & (changed[1] <= 1) & (changed[2] > 1)
    assert turned.any()
    clearest = (expected.abs().amin(0) * turned).argmax()
    *rows, first, second = (int(index) for index in torch.unravel_index(clearest, turned.shape))
    samples = attrs.evolve(
        everything,
        image_names=tuple(everything.image_names[row] for row in rows),
        images=tuple(everything.images[row] for row in rows),
        captions=(everything.captions[first], everything.captions[second]),
    )
    spec = ExportSpec(output=tmp_path / "out", precision="int8")
    folder = export_model(model, spec, samples=samples, calibration=everything)
    assert any(tower.float32 for tower in read_contract(folder).towers)
    assert read_report(folder).passed


@pytest.mark.slow
def test_an_export_that_cannot_pass_is_status_1_and_is_kept(tmp_path, capsys):
    """Too many layers cannot be rounded; and the ranges come from the data set that the command names."""
    model = outlying(TRANSFORMERS, norms=["attention_norm", "ffn_norm", "norm"])
    save_model(model, tmp_path / "model.safetensors")
    buffer = BytesIO()
    Image.new("RGB", (80, 80)).save(buffer, "PNG")
    black = [BenchmarkSample(key=str(row), image=buffer.getvalue(), captions=(f"black {row}",)) for row in range(2)]
    write_benchmark(tmp_path / "wds_black_test", black)
    out = tmp_path / "out"
    command = ["export", tmp_path / "model.safetensors", "--precision", "int8", "--tower", "image", "-o", out]
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in [*command, "--calibration", tmp_path / "wds_black_test"]])
    assert stop.value.code == 1
    assert "image cosine, minimum" in capsys.readouterr().err
    assert read_report(out).data == "bundled", "measured on what it would be measured on without"
    stored = {tensor.name: tensor for tensor in onnx.load(out / "image.onnx").graph.initializer}
    scale = float(onnx.numpy_helper.to_array(stored["pixels_scale"]))
    assert scale == pytest.approx(max(mean / std for mean, std in zip(PIXELS.mean, PIXELS.std, strict=True)) / 255)
    with pytest.raises(SystemExit) as stop:
        main(["verify", str(out)])
    assert stop.value.code == 1
