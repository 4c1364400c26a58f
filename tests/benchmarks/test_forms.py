"""Forms against float32 on labelled pictures: nothing is lost where nothing changes, and a lost tower is seen."""

import pytest
import torch
from torch import nn

import mobileclip
from benchmarks.forms import FormsBenchSpec, in_form, measure
from benchmarks.harness import run
from mobileclip.evaluation import BenchmarkSample, write_benchmark
from mobileclip.inference.comparison import bundled_samples


@pytest.fixture
def data(tmp_path):
    """Photographs, each of what the model in float32 takes it for."""
    clip, names = mobileclip.load("icons"), bundled_samples().captions[::2]
    pictures = torch.stack([clip.transform(image) for image in bundled_samples().images])
    labels = (clip.model.encode_image(pictures, normalize=True) @ clip.encode_text(names).T).argmax(1)
    samples = [
        BenchmarkSample(key=str(number), image=image, label=int(label))
        for number, (image, label) in enumerate(zip(bundled_samples().images, labels, strict=True))
    ]
    write_benchmark(tmp_path / "wds_photos_test", samples, class_names=names, templates=("{}",))
    return str(tmp_path / "wds_photos_test")


def test_a_form_is_compared_picture_by_picture(data, tmp_path):
    spec = FormsBenchSpec(tiny=True, data=(data,), folder=tmp_path / "made")
    (row,) = run(spec, "forms").rows
    assert row.case == {"data": "wds_photos_test", "form": "bfloat16, eager"}
    assert row.values["pictures"].number == 12
    clip = mobileclip.load("icons")
    form = in_form(clip.model, "eager", "float32")
    form.image_encoder = Turned(form.image_encoder)
    (turned,) = measure(spec, data, "bfloat16, eager", {"bfloat16, eager": form}, {})
    assert turned.values["float32"].number == row.values["float32"].number == 100
    assert turned.values["wrong alone"].number == 12
    assert turned.values["difference"].number == -100


class Turned(nn.Module):
    """A tower whose embeddings point the other way."""

    def __init__(self, tower):
        super().__init__()
        self.tower, self.spec = tower, tower.spec

    def forward(self, images):
        return -self.tower(images)


@pytest.mark.extra("openvino")
def test_programs_give_every_embedding_themselves():
    model, images = mobileclip.load("icons").model, torch.rand(3, 3, 32, 32)
    form = in_form(model, "openvino", "float32")
    form.image_encoder.tower.forward = None  # what is not the program's cannot be computed
    torch.testing.assert_close(form.encode_image(images), model.encode_image(images), rtol=1e-4, atol=1e-4)


def test_without_data_there_is_nothing_to_measure():
    with pytest.raises(ValueError, match="--icons FOLDER"):
        list(FormsBenchSpec().cases())
