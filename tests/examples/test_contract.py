"""What examples compute of a contract is what the library computes, to the bit."""

import json
import shutil
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from mobileclip.data import ImageTransform, Tokenizer
from mobileclip.data.images.limits import IMAGE_FORMATS
from mobileclip.export import ExportSpec, export_model, read_contract
from mobileclip.inference.comparison import LEAST_COSINE
from mobileclip.inputs import ImageInput
from mobileclip.serialization import from_json
from tests.errors import fails
from tests.examples.running import contract_module, write_images
from tests.export.models import SHALLOW, pixels, small_model


@pytest.fixture
def contract(monkeypatch):
    return contract_module(monkeypatch)


@pytest.fixture(scope="module")
def folder(small_export):
    """Both towers, with everything as it is by default."""
    return small_export("torch")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of pictures of all kinds."""
    place = tmp_path_factory.mktemp("pictures")
    colours = np.random.default_rng(0).integers(0, 256, (75, 131, 4), dtype=np.uint8)
    image, rotated = Image.fromarray(colours[..., :3]), Image.Exif()
    rotated[0x0112] = 6
    image.save(place / "wide.png")
    image.transpose(Image.Transpose.TRANSPOSE).save(place / "high.png")
    image.crop((0, 0, 9, 5)).save(place / "small.png")
    image.quantize(16).save(place / "palette.png", transparency=3)
    image.convert("CMYK").save(place / "print.jpg")
    image.save(place / "rotated.jpg", exif=rotated)
    Image.fromarray(colours).save(place / "transparent.png")
    Image.fromarray(colours[..., 0].copy()).save(place / "gray.png")
    Image.fromarray(colours[..., 0].astype(np.uint16) * 257).save(place / "16bit.png")
    write_images(place)
    return sorted(place.iterdir())


@pytest.mark.parametrize("choices", [*product(("bilinear", "bicubic"), ("hidden", "white", "#102030"))])
@pytest.mark.parametrize("preprocess", ["host", "uint8", "float32"])
def test_preprocessing_is_the_librarys(contract, folder, pictures, preprocess, choices):
    described = json.loads((folder / "mobileclip.json").read_text())
    described["image"]["preprocess"] = preprocess
    described["image"]["input"] |= dict(zip(("interpolation", "background"), choices, strict=True))
    export = contract.Export(folder, described)
    transform = ImageTransform(from_json(json.dumps(described["image"]["input"]), ImageInput))
    for path in pictures:
        ours = contract.preprocess(export, contract.read_image(export, path))
        data = path.read_bytes()
        expected = transform(data).numpy()
        if preprocess != "host":
            expected = transform.pixels(data).transpose(2, 0, 1).astype(preprocess)
        assert (ours.dtype, ours.flags.c_contiguous) == (expected.dtype, True)
        assert np.array_equal(ours, expected[None]), path


@torch.no_grad()
def test_tokens_are_the_librarys_and_probabilities_the_models(contract, folder):
    texts = ["a cat", "", "two DOGS on a beach, and a good deal more than twelve tokens can ever hold", "café 🙂"]
    export, model = contract.read_export(folder, target="torch"), small_model("torch")
    tokens = contract.tokenize(export, texts)
    assert tokens.dtype == np.int64
    assert tokens.tolist() == Tokenizer(SHALLOW.text.input)(texts).tolist()
    images = model.encode_image(pixels(SHALLOW.image.input)[:3], normalize=True)
    cosines = images @ model.encode_text(torch.from_numpy(tokens), normalize=True).T
    ours = torch.from_numpy(contract.probabilities(export, cosines.numpy()))
    torch.testing.assert_close(ours, (model.logit_scale.exp() * cosines).softmax(-1), rtol=1e-4, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("normalize", [True, False])
def test_golden_vectors_tell_right_from_wrong(contract, folder, tmp_path, normalize):
    model = small_model("torch")
    if not normalize:
        folder = export_model(model, ExportSpec(output=tmp_path / "out", target="torch", tower="text", normalize=False))
    export = contract.read_export(folder, target="torch")

    def encode(tokens):
        return model.encode_text(torch.from_numpy(tokens), normalize=normalize).numpy()

    assert contract.check_golden(export, "text", encode) > 0.99999
    with fails(ValueError, "cosine"):
        contract.check_golden(export, "text", lambda tokens: encode(np.roll(tokens, 1, axis=1)))
    with fails(ValueError, "cosine"):
        contract.check_golden(export, "text", lambda tokens: np.full((len(tokens), 12), np.nan, np.float32))


def test_what_is_no_export_is_refused(contract, folder, tmp_path):
    for place, named in ((tmp_path, ["mobileclip.json"]), (folder, ["torch", "openvino"])):
        with fails(ValueError, *named):
            contract.read_export(place, target="openvino")
    copied = shutil.copytree(folder, tmp_path / "copied")
    described = json.loads((copied / "mobileclip.json").read_text())
    for changes, named in (({"format_version": 99}, "99"), ({"towers": described["towers"][:1]}, "text")):
        (copied / "mobileclip.json").write_text(json.dumps(described | changes))
        with fails(ValueError, named):
            contract.read_export(copied, target="torch").tower("text")


def test_constants_are_the_librarys_and_only_its_formats_are_opened(contract, folder, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with fails(UnidentifiedImageError):
        contract.read_image(contract.read_export(folder, target="torch"), path)
    assert contract.LEAST_COSINE == LEAST_COSINE
    assert read_contract(folder).format_version == contract.FORMAT_VERSION
    assert [kind.name for kind in IMAGE_FORMATS] == list(contract.IMAGE_FORMATS)
