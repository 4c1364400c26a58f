"""One reading of a picture: whatever a command does with a file, the model sees the same pixels of it."""

from __future__ import annotations

import io
import json
from contextlib import suppress

import attrs
import numpy as np
import pytest
import torch
from PIL import Image

import mobileclip
from mobileclip.cli.__main__ import main
from mobileclip.collections import Collection, Match, small_images
from mobileclip.data import (
    AugmentationParams,
    ImageError,
    ImageTextSample,
    ImageTransform,
    ReinforcedPipelineSpec,
    SkipReport,
    crop_augmentation,
    write_shards,
)
from mobileclip.data.images.transform import read_pixels
from mobileclip.data.loading.replay import SourceImage
from mobileclip.datasets import LabelledPipelineSpec
from mobileclip.datasets.inspection import PAPER, inspect_sample
from mobileclip.evaluation import Session, candidate_of, open_benchmark
from mobileclip.export import Samples
from mobileclip.export.measured import measure_model
from mobileclip.inference.comparison import calibration_crops
from mobileclip.inference.embedding import read_embeddings as read_archive
from mobileclip.inputs import ImageInput
from mobileclip.training.finetuning.tasks import open_task
from tests.build.image_files import encoded, noise, turned_notes
from tests.odd_images import broken, drawing, readable, stamp, turned

NAMES = ("a circle", "a bar", "a house")
# What an index keeps is in half precision.
HALF = 2.5e-4


@pytest.fixture(scope="module")
def clip():
    return mobileclip.load("icons")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two folders of classes with all pictures, those that cannot be read among them."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, (name, data) in enumerate((readable() | broken()).items()):
        (folder / f"class{number % 2}").mkdir(exist_ok=True)
        (folder / f"class{number % 2}" / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def expected(clip):
    """Embeddings of the pictures, given as Pillow images that are upright and on white already."""
    rows = {}
    for name, data in readable().items():
        with Image.open(io.BytesIO(data)) as opened:
            rows[name] = clip.encode_image(by_hand(opened))[0].numpy()
    return rows


def by_hand(opened: Image.Image) -> Image.Image:
    """What a careful person makes of a picture for a model that wants white below transparent pictures."""
    opened.load()
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
    number = opened.getexif().get(0x0112, 1) if opened.format != "TIFF" else 1
    if opened.mode.startswith("I"):
        return Image.fromarray(np.round(np.asarray(opened) / 257).astype(np.uint8)).convert("RGB")
    rgba = opened.convert("RGB").convert("RGBA") if opened.mode == "CMYK" else opened.convert("RGBA")
    plain = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    plain.info = {}
    return plain.transpose(Image.Transpose(turns[number])) if number in turns else plain


def test_python_reads_a_path_bytes_files_images_and_arrays_alike(clip, folder, expected):
    for path in sorted(folder.glob("*/*")):
        if path.name not in expected:
            with pytest.raises(ImageError, match=path.name):
                clip.encode_image(path)
            continue
        data = path.read_bytes()
        opened = Image.open(io.BytesIO(data))
        sources = [path, str(path), data, bytearray(data), io.BytesIO(data), opened]
        sources += [np.asarray(opened)] if opened.mode in ("RGB", "RGBA") and not opened.getexif() else []
        found = clip.encode_image(iter(sources)).numpy()
        np.testing.assert_allclose(found, np.broadcast_to(expected[path.name], found.shape), 0, 1e-5, path.name)


def run(*arguments: str) -> None:
    """Run a command; what cannot be read is there on purpose, whatever the exit status says of it."""
    with suppress(SystemExit):
        main(list(arguments))


def same(found, expected: dict[str, np.ndarray], atol: float = 1e-5) -> None:
    """Rows by path or by key, which is a path without its ending, are those of the pictures."""
    rows, stems = dict(found), {name.rpartition(".")[0]: row for name, row in expected.items()}
    assert len(rows) == len(expected)
    for name, row in rows.items():
        wanted = (expected | stems)[name.rpartition("/")[2]]
        np.testing.assert_allclose(row, wanted, rtol=0, atol=atol, err_msg=name)


def probabilities(clip, row: np.ndarray) -> dict[str, float]:
    scores = clip.model.logit_scale.exp() * torch.from_numpy(row) @ clip.encode_text(NAMES).T
    return dict(zip(NAMES, scores.softmax(-1).tolist(), strict=True))


def test_embed_and_index(folder, expected, tmp_path):
    run("embed", str(folder), "-m", "icons", "-o", str(tmp_path / "all.npz"))
    archive = read_archive(tmp_path / "all.npz")
    same(zip(archive.image_paths, archive.image, strict=True), expected)
    run("index", str(folder), "-i", str(tmp_path / "index"), "-m", "icons", "--decode", "exact")
    snapshot = Collection.open(tmp_path / "index").snapshot
    rows = zip(snapshot.rows(range(len(snapshot))), snapshot.vectors, strict=True)
    same([(row["path"], vector) for row, vector in rows if not row["problem"]], expected, HALF)


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_photographs_are_decoded_as_far_as_asked(clip, tmp_path, capsys, decode):
    path, size = tmp_path / "photo.jpg", clip.transform.image_input.size
    noise(9, 6).resize((5 * size, 4 * size), Image.Resampling.BICUBIC).save(path)
    pixels = read_pixels(path, clip.transform, reduced=decode == "fast")
    (expected,) = clip.encode_pixels(torch.from_numpy(pixels)[None]).numpy()
    run("embed", str(path), "-m", "icons", "-o", str(tmp_path / "one.npz"), "--decode", decode)
    np.testing.assert_allclose(read_archive(tmp_path / "one.npz").image[0], expected, rtol=0, atol=1e-6)
    capsys.readouterr()
    main(["classify", str(path), *NAMES, "-m", "icons", "--json", "--decode", decode])
    assert json.loads(capsys.readouterr().out) == pytest.approx(probabilities(clip, expected), rel=1e-4)


def test_classify(clip, folder, expected, capsys):
    for path in sorted(folder.glob("*/*")):
        if path.name in expected:
            main(["classify", str(path), *NAMES, "-m", "icons", "--json"])
            scores = probabilities(clip, expected[path.name])
            assert json.loads(capsys.readouterr().out) == pytest.approx(scores, abs=1e-4)


def test_eval_and_fine_tuning(clip, folder, expected):
    session = Session.of(candidate_of(clip.model, name="icons"), show_progress=False)
    features, report = session.features(open_benchmark(str(folder)))
    same(zip(features.keys, torch.nn.functional.normalize(features.image, dim=-1).numpy(), strict=True), expected)
    left_out, samples = SkipReport(), open_task(str(folder), "classes", ("{}",)).samples
    options = {"keep": lambda sample: sample.key, "title": "", "report": left_out}
    keys, rows = session.embed_images(samples(left_out), lambda sample: sample.image, **options)
    same(zip(keys, torch.nn.functional.normalize(rows, dim=-1).numpy(), strict=True), expected)
    assert report.num_skipped == left_out.num_skipped == len(broken())


def test_export_and_calibration(clip):
    files = readable()
    samples = Samples(name="odd", image_names=tuple(files), images=tuple(files.values()), captions=("a", "b"))
    measured = measure_model(clip.model, samples, normalize=True)
    crops = calibration_crops([encoded(stamp(), "PNG")], clip.transform.image_input)
    for pixels, data in zip(measured.inputs["image"], files.values(), strict=True):
        assert np.array_equal(pixels.movedim(0, -1).numpy(), clip.transform.pixels(data))
    assert crops[:, :, 0].max() == 255, "the white that it stands on"


@pytest.mark.parametrize("kind", ["pairs", "classes"])
@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_training_without_stored_augmentations(tmp_path, kind, decode):
    """Views of a picture of one colour above another tell how it was turned; a whole one is what an evaluation sees."""
    contract = ImageInput(size=16, interpolation="bicubic", background="white")
    exif = b"Exif\0\0" + turned_notes(6)
    pictures = {"turned.jpg": encoded(drawing(size=(64, 64)), "JPEG", exif=exif), "stamp.png": encoded(stamp(), "PNG")}
    for name, data in pictures.items():
        (tmp_path / "classes" / name[:-4]).mkdir(parents=True)
        (tmp_path / "classes" / name[:-4] / name).write_bytes(data)
    whole = attrs.evolve(crop_augmentation(16), scale=(1.0, 1.0), ratio=(1.0, 1.0))
    choices = {"batch_size": 2, "image": contract, "augmentation": whole, "decode": decode, "num_readers": 1}
    if kind == "pairs":
        samples = [ImageTextSample(key=name[:-4], captions=("x",), image=data) for name, data in pictures.items()]
        (shard,) = write_shards(tmp_path, samples, samples_per_shard=2)
        (batch,) = ReinforcedPipelineSpec(shards=str(shard), reinforced=False, **choices).build()
    else:
        spec = LabelledPipelineSpec(shards=str(tmp_path / "classes"), num_classes=2, flip_probability=0, **choices)
        (batch,) = spec.build()
    for key, pixels in zip(batch.keys, batch.image, strict=True):
        (name,) = (name for name in pictures if name[:-4] in key)
        seen = ImageTransform(contract).pixels(pictures[name]).astype(int)
        assert np.abs(pixels.movedim(0, -1).numpy().astype(int) - seen).max() <= (0 if decode == "exact" else 3), name


def test_stored_augmentations_are_of_the_pixels_as_they_are_encoded():
    """Their crops were drawn on these; the background is the model's all the same."""
    params = AugmentationParams(crop=(0, 0, 40, 60), operations=(), image_size=(60, 40))
    stored, upright = (SourceImage(turned("JPEG", one)).replay([crop_augmentation(16)], params)[0] for one in (6, 1))
    assert np.array_equal(stored, upright)
    params = AugmentationParams(crop=(0, 0, 48, 48), operations=(), image_size=(48, 48))
    (white,) = SourceImage(encoded(stamp(), "PNG"), background=(255, 255, 255)).replay([crop_augmentation(16)], params)
    assert tuple(white[0, 0]) == (255, 255, 255)


def test_pictures_for_people_stand_on_paper(tmp_path):
    path = tmp_path / "stamp.png"
    path.write_bytes(encoded(stamp(), "PNG"))
    unknown = dict.fromkeys(("part", "camera", "taken", "latitude", "longitude", "time"))
    match = Match(id=1, score=1.0, path=str(path), width=48, height=48, size=path.stat().st_size, **unknown)
    (shown,) = small_images([match], 48)
    assert shown.getpixel((0, 0)) == PAPER
    sample = ImageTextSample(key="stamp", captions=("a disc",), image=path.read_bytes())
    (shard,) = write_shards(tmp_path / "shards", [sample], samples_per_shard=1)
    assert inspect_sample(str(shard)).image.getpixel((0, 0)) == PAPER
