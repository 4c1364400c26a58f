"""A tower as OpenVINO runs it: in the precision that was asked for, without a word, and pickled."""

import pickle

import pytest
import torch
from torch import nn

from mobileclip.data import ImageTransform
from mobileclip.extras import install
from mobileclip.inference import openvino_backend as programs
from mobileclip.inference.openvino_backend import openvino_core, openvino_model, openvino_program
from mobileclip.inputs import OPENAI_MEAN, OPENAI_STD, ImageInput
from tests.errors import fails
from tests.preloaded import preloaded

pytestmark = [
    pytest.mark.extra("openvino"),
    pytest.mark.usefixtures("one_thread"),
    # Torch's tracer imports parts of torch that warn of themselves.
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    return nn.Linear(64, 32).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def example():
    return torch.rand(4, 64, generator=torch.Generator().manual_seed(0))


class Halves(nn.Module):
    """Projects the halves of each row: what it computes depends on how many rows there are."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(32, 8)

    def forward(self, rows):
        return self.project(rows.reshape(2 * rows.shape[0], 32)).reshape(rows.shape[0], 16)


def made(tower, example, precision, **options):
    return openvino_program(tower, example, lengths=False, precision=precision, **options)


def has_bfloat16():
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_float32_is_as_exact_as_pytorch(tower, example):
    torch.testing.assert_close(made(tower, example, "float32")(example), tower(example), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "contract",
    [{}, {"mean": OPENAI_MEAN, "std": OPENAI_STD}, {"std": (0.5, 0.25, 2.0)}, {"mean": (0.5, 0.0, 0.25)}],
    ids=["nothing", "mean and std", "std", "mean"],
)
def test_pixels_are_normalised_inside_the_padding_of_the_first_convolution(contract):
    """What a convolution pads with are zeros of images that were normalised: a mean in its bias would show at edges."""
    torch.manual_seed(0)
    image = ImageInput(size=8, **contract)
    tower = nn.Conv2d(3, 5, 3, stride=2, padding=1).requires_grad_(False).eval()
    pixels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    transform = ImageTransform(image)
    images = transform.normalize(pixels)
    program = made(tower, images, "float32", pixels=image)
    for given in (images, transform.as_images(pixels), transform.as_images(pixels).contiguous()):
        torch.testing.assert_close(program(given), tower(images), rtol=1e-5, atol=1e-5)


def test_bfloat16_is_computed_in_where_the_processor_does(tower, example):
    if not has_bfloat16():
        with fails(RuntimeError, "bfloat16"):
            made(tower, example, "bfloat16")
        return
    error = (made(tower, example, "bfloat16")(example) - tower(example)).abs().max()
    assert 1e-5 < error < 2e-2


@pytest.mark.parametrize("faster", ["float32", "bfloat16"])
def test_what_is_not_in_int8_is_in_what_takes_less_time(tower, example, monkeypatch, faster):
    """A model of which no layer was quantised is all of it beside int8."""
    if not has_bfloat16():
        faster = "float32"
    hints = ["float32", "bfloat16"][: 1 + has_bfloat16()]
    monkeypatch.setattr(programs, "times_in_turn", lambda *_, **__: [[float(one != faster)] for one in hints])
    beside = made(tower, example, "int8", int8=openvino_model(tower, example, lengths=False))(example)
    torch.testing.assert_close(beside, made(tower, example, faster)(example), rtol=0, atol=0)


def test_a_model_of_any_batch_counts_the_rows_that_come():
    model = openvino_model(Halves(), torch.rand(4, 64), lengths=False, any_batch=True)
    model.reshape([1, 64])
    assert list(model.output(0).shape) == [1, 16]


def test_a_program_is_pickled_and_names_what_is_missing_where_it_is_read(tower, example, monkeypatch):
    program = made(tower, example, "float32")
    content = pickle.dumps(program)
    torch.testing.assert_close(pickle.loads(content)(example), program(example), rtol=0, atol=0)

    def missing():
        raise ModuleNotFoundError(name="openvino")

    monkeypatch.setattr(programs, "openvino_core", missing)
    for make in (lambda: pickle.loads(content), lambda: made(tower, example, "float32")):
        with pytest.raises(ModuleNotFoundError) as raised:
            make()
        assert str(raised.value) == f"the engine 'openvino' needs openvino: `{install('openvino')}`"


_IMPORTED = """
import sys
from mobileclip.inference.openvino_backend import import_quietly
import_quietly("openvino")
assert "openvino" in sys.modules
print(*(name for name in sys.modules if name.startswith("openvino_telemetry")))
"""


def test_what_reports_over_the_network_is_not_imported(tmp_path):
    done = preloaded().call("tests.preloaded:python", "-c", _IMPORTED, folder=tmp_path)
    assert (done.status, done.output) == (0, "\n")
