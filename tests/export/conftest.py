import copy
import sys
from functools import cache

import pytest

from tests.build.canary import CANARY_EVENT
from tests.export.models import CONVOLUTIONAL, SHALLOW, TRANSFORMERS, UNUSUAL, exported, seeing


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread):
    """For every test of the subpackage."""


@pytest.fixture(scope="session", autouse=True)
def _operations_read_once():
    """PyTorch lists its operations, and reads the source of hundreds of ONNX functions, anew for every tower.

    Together they take more than a third of the time.
    """
    from torch._export import utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_materialize_cpp_cia_ops", cache(utils._materialize_cpp_cia_ops))
        try:
            from torch.onnx._internal.exporter._registration import ONNXRegistry
        except ImportError:  # where nothing exports to ONNX
            yield
            return
        read = cache(ONNXRegistry.from_torchlib)

        def again(**options):
            found = copy.copy(read(**options))
            found.functions = {name: list(functions) for name, functions in found.functions.items()}
            return found

        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(again))
        yield


@pytest.fixture(scope="session")
def convolutional():
    return seeing(CONVOLUTIONAL)


@pytest.fixture(scope="session")
def transformers():
    return seeing(TRANSFORMERS)


@pytest.fixture(scope="session")
def shallow():
    return seeing(SHALLOW)


@pytest.fixture(scope="session")
def plain_onnx(small_export):
    """Both towers in ONNX with everything as it is by default."""
    return small_export("onnx")


@pytest.fixture(scope="session")
def half_onnx(shallow, export_once):
    """Both towers in ONNX with nothing as it is by default."""
    return export_once("half_onnx", lambda out: exported(shallow, out, **UNUSUAL))


@pytest.fixture(scope="session")
def plain_torch(small_export):
    return small_export("torch")


@pytest.fixture(scope="session")
def seen():
    """What ran of that which should not; an audit hook stays for ever, so there is one."""
    heard = []
    sys.addaudithook(lambda event, _: heard.append(event) if event == CANARY_EVENT else None)
    return heard
