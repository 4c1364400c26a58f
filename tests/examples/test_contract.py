"""What examples compute of a contract is what the library computes, to the bit."""

import io
import json
import shutil
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from mobileclip.data import ImageTransform, Tokenizer, load_image
from mobileclip.data.images.limits import IMAGE_FORMATS
from mobileclip.export import ExportSpec, bundled_samples, export_model, read_contract
from mobileclip.inference.comparison import LEAST_COSINE
from mobileclip.inputs import ImageInput
from mobileclip.serialization import from_json
from tests.errors import fails
from tests.examples.running import contract_module
from tests.export.models import SHALLOW, small_model


@pytest.fixture
def contract(monkeypatch):
    return contract_module(monkeypatch)


@pytest.fixture(scope="module")
def folder(small_export):
    """Both towers, with everything as it is by default."""
    return small_export("torch")


def pictures():
    """Pictures of all kinds: (name of the file, its bytes)."""
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 256, (75, 131, 4), dtype=np.uint8)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    kinds = {
        "wide.png": (Image.fromarray(colours[..., :3]), {}),
        "high.png": (Image.fromarray(colours[..., :3].transpose(1, 0, 2).copy()), {}),
        "small.png": (Image.fromarray(colours[:5, :9, :3].copy()), {}),
        "gray.png": (Image.fromarray(colours[..., 0].copy()), {}),
        "transparent.png": (Image.fromarray(colours), {}),
        "palette.png": (Image.fromarray(colours[..., :3]).quantize(16), {"transparency": 3}),
        "16bit.png": (Image.fromarray(colours[..., 0].astype(np.uint16) * 257), {}),
        "print.jpg": (Image.fromarray(colours[..., :3]).convert("CMYK"), {}),
        "rotated.jpg": (Image.fromarray(colours[..., :3]), {"exif": rotated}),
    }
    for name, (picture, options) in kinds.items():
        stream = io.BytesIO()
        picture.save(stream, "JPEG" if name.endswith("jpg") else "PNG", **options)
        yield name, stream.getvalue()
    samples = bundled_samples()
    yield from zip((f"{name}.jpg" for name in samples.image_names), samples.images, strict=True)


@pytest.mark.parametrize("choices", [*product(("bilinear", "bicubic"), ("hidden", "white", "#102030"))])
@pytest.mark.parametrize("preprocess", ["host", "uint8", "float32"])
def test_preprocessing_is_the_librarys(contract, folder, tmp_path, preprocess, choices):
    interpolation, background = choices
    described = json.loads((folder / "mobileclip.json").read_text())
    described["image"]["preprocess"] = preprocess
    described["image"]["input"] |= {"interpolation": interpolation, "background": background}
    export = contract.Export(folder, described)
    transform = ImageTransform(from_json(json.dumps(described["image"]["input"]), ImageInput))
    for name, data in pictures():
        (tmp_path / name).write_bytes(data)
        ours = contract.preprocess(export, contract.read_image(export, tmp_path / name))
        expected = transform(data).numpy()
        if preprocess != "host":
            expected = transform.pixels(data).transpose(2, 0, 1).astype(preprocess)
        assert (ours.dtype, ours.flags.c_contiguous) == (expected.dtype, True)
        assert np.array_equal(ours, expected[None]), name


def test_tokens_are_the_librarys(contract, folder):
    texts = ["a cat", "", "two DOGS on a beach, and a good deal more than twelve tokens can ever hold", "café 🙂"]
    tokens = contract.tokenize(contract.read_export(folder, target="torch"), texts)
    assert tokens.dtype == np.int64
    assert tokens.tolist() == Tokenizer(SHALLOW.text.input)(texts).tolist()


@torch.no_grad()
def test_probabilities_are_the_models(contract, folder):
    model = small_model("torch")
    export = contract.read_export(folder, target="torch")
    samples = bundled_samples()
    transform, tokens = ImageTransform(SHALLOW.image.input), contract.tokenize(export, samples.captions[:5])
    images = torch.stack([transform(load_image(data)) for data in samples.images[:3]])
    texts = model.encode_text(torch.from_numpy(tokens), normalize=True)
    cosines = model.encode_image(images, normalize=True) @ texts.T
    ours = contract.probabilities(export, cosines.numpy())
    expected = (model.logit_scale.exp() * cosines).softmax(-1)
    torch.testing.assert_close(torch.from_numpy(ours), expected, rtol=1e-4, atol=1e-6)


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
    with fails(ValueError, "mobileclip.json"):
        contract.read_export(tmp_path, target="openvino")
    with fails(ValueError, "torch", "openvino"):
        contract.read_export(folder, target="openvino")
    copied = shutil.copytree(folder, tmp_path / "copied")
    described = json.loads((copied / "mobileclip.json").read_text())
    for changes, named in (({"format_version": 99}, "99"), ({"towers": described["towers"][:1]}, "text")):
        (copied / "mobileclip.json").write_text(json.dumps(described | changes))
        with fails(ValueError, named):
            contract.read_export(copied, target="torch").tower("text")


def test_constants_are_the_librarys_and_only_its_formats_are_opened(contract, folder, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(UnidentifiedImageError):
        contract.read_image(contract.read_export(folder, target="torch"), path)
    assert contract.LEAST_COSINE == LEAST_COSINE
    assert read_contract(folder).format_version == contract.FORMAT_VERSION
    assert [kind.name for kind in IMAGE_FORMATS] == list(contract.IMAGE_FORMATS)
