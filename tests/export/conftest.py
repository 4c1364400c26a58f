import sys

import pytest

from mobileclip.export import ExportSpec, export_model
from tests.export.hostile import CANARY_EVENT
from tests.export.models import CONVOLUTIONAL, TRANSFORMERS, seeing, unusual


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread):
    """For every test of the room."""


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


@pytest.fixture(scope="session")
def canaries():
    """What ran of that which should not, since the session began; an audit hook stays for ever, so there is one."""
    heard = []
    sys.addaudithook(lambda event, _: heard.append(event) if event == CANARY_EVENT else None)
    return heard


@pytest.fixture
def seen(canaries):
    """What ran of that which should not."""
    canaries.clear()
    return canaries
