import pytest
import torch

from mobileclip.export import ExportSpec, export_model
from tests.export.models import CONVOLUTIONAL, TRANSFORMERS, seeing, unusual


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Models as small as these spend their time on waking threads."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@pytest.fixture(scope="session")
def convolutional():
    return seeing(CONVOLUTIONAL)


@pytest.fixture(scope="session")
def transformers():
    return seeing(TRANSFORMERS)


@pytest.fixture(scope="session")
def plain_onnx(convolutional, tmp_path_factory):
    """Both towers in ONNX with everything as it is by default."""
    return export_model(convolutional, ExportSpec(out=tmp_path_factory.mktemp("onnx") / "plain"))


@pytest.fixture(scope="session")
def half_onnx(transformers, tmp_path_factory):
    """Both towers in ONNX with nothing as it is by default."""
    out = tmp_path_factory.mktemp("onnx") / "half"
    return export_model(transformers, unusual(out, target="onnx"))


@pytest.fixture(scope="session")
def plain_torch(transformers, tmp_path_factory):
    return export_model(transformers, ExportSpec(out=tmp_path_factory.mktemp("torch") / "plain", target="torch"))
