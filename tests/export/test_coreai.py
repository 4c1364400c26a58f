"""Core AI models: converted by Apple's converter, and run by Apple's runtime on this machine."""

from __future__ import annotations

import asyncio
import shutil

import attrs
import pytest
import torch

import mobileclip
from mobileclip import reparameterize
from mobileclip.export import ExportSpec, bundled_samples, export_model, read_contract, targets, verify_export
from tests.errors import fails
from tests.export.models import SHALLOW, few_samples, pixels, seeing, unusual
from tests.export.test_verify import sign

pytest.importorskip("coreai_torch", reason="Core AI's converter wants Python 3.11 or newer")


@pytest.fixture(scope="module")
def model():
    return seeing(SHALLOW)


@pytest.fixture(scope="module")
def plain(model, tmp_path_factory):
    """Both towers with everything as it is by default."""
    return export_model(model, ExportSpec(out=tmp_path_factory.mktemp("coreai") / "plain", target="coreai"))


def test_it_gives_what_the_model_gives(plain):
    report = verify_export(plain, trust=True, show_progress=False)
    assert report.passed, report.failures
    assert report.runtime == "coreai"
    assert all(tower.cosine_minimum > 0.999999 for tower in report.towers)
    contract = read_contract(plain)
    assert [(tower.file, tower.input_dtype) for tower in contract.towers] == [
        ("image.aimodel", "float32"),
        ("text.aimodel", "int32"),
    ]
    assert {"coreai-core", "coreai-torch"} <= set(contract.versions)


def test_it_is_a_model_also_where_an_event_loop_runs(plain, model):
    async def in_a_notebook():
        return mobileclip.load(plain, trust=True).encode_image(bundled_samples().images)

    expected = mobileclip.ImageTextModel(model).encode_image(bundled_samples().images)
    torch.testing.assert_close(asyncio.run(in_a_notebook()), expected, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("another_machine")
def test_it_is_run_for_those_alone_who_trust_it(plain):
    with fails("export.written-elsewhere-whose-runtime"):
        verify_export(plain)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_nothing_as_it_is_by_default(convolutional, precision, tmp_path):
    spec = attrs.evolve(unusual(tmp_path / "half", target="coreai"), precision=precision)
    folder = export_model(convolutional, spec, samples=few_samples(), show_progress=False)
    report = verify_export(folder, trust=True, show_progress=False)
    assert report.passed, report.failures
    (image, text) = read_contract(folder).towers
    assert image.input_dtype == "uint8"
    assert image.input_shape[0] is text.input_shape[0] is None


@pytest.mark.slow
def test_feature_maps_come_out(convolutional, tmp_path):
    spec = ExportSpec(out=tmp_path / "maps", target="coreai", tower="image", features=(0, 1))
    folder = export_model(convolutional, spec, show_progress=False)
    (tower,) = read_contract(folder).towers
    run = targets["coreai"].open(folder / tower.file, tower)
    images = pixels(convolutional.spec.image.input)[:1]
    _, *maps = run(images)
    encoder = reparameterize(convolutional).image_encoder
    _, expected = encoder.embedding_and_features(images, (0, 1))
    for found, one in zip(maps, expected, strict=True):
        torch.testing.assert_close(found, one, atol=1e-4, rtol=1e-4)


def test_int8_says_what_to_choose(model, tmp_path):
    with fails("export.target-precision-choose-precision", "coreai", "int8", "float32, float16"):
        export_model(model, ExportSpec(out=tmp_path / "int8", target="coreai", precision="int8"), show_progress=False)


@pytest.mark.parametrize("part", ["main.mlirb", "metadata.json"])
def test_a_damaged_model_is_refused(plain, part, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "damaged")
    (folder / "text.aimodel" / part).write_bytes(b"damaged")
    sign(folder)
    with pytest.raises(ValueError, match=r"text.aimodel cannot be read by Core AI"):
        verify_export(folder, trust=True, show_progress=False)
