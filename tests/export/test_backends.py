"""ExecuTorch for backends that are not here: what is written, what is said of it, and what is refused."""

import json
import sys

import attrs
import pytest

from mobileclip.export import ExportSpec, export_model, load_export, read_contract, read_report, targets, verify_export
from mobileclip.export.targets import NotRunHereError
from mobileclip.export.targets.executorch.backends import lowering, require_runnable
from mobileclip.export.targets.executorch.pte import read_pte
from tests.errors import fails
from tests.export.models import SHALLOW, seeing

MATCH = "is lowered, not run: ExecuTorch here has .*XnnpackBackend.*, and not VulkanBackend; compare the golden vectors"


def test_a_backend_is_of_executorch_and_takes_floats_one_by_one(tmp_path):
    with fails("export.backend-target-none-leave", "vulkan", "onnx"):
        ExportSpec(out=tmp_path, backend="vulkan")
    for options in ({"precision": "int8"}, {"dynamic_batch": True}):
        with fails("export.backend-takes-input-time", "coreml"):
            ExportSpec(out=tmp_path, target="executorch", backend="coreml", **options)
        assert not ExportSpec(out=tmp_path, target="executorch", backend="xnnpack", **options).lowered_only


def test_what_the_wheel_cannot_lower_for_is_said():
    with fails("export.executorch-lowers-tools-maker", "qnn"):
        lowering("qnn")


@pytest.mark.slow
def test_what_the_runtime_has_runs():
    require_runnable(None, "image.pte")
    with pytest.raises(NotRunHereError, match=f"image.pte {MATCH}"):
        require_runnable("vulkan", "image.pte")


@pytest.fixture(scope="module")
def vulkan(tmp_path_factory):
    out = tmp_path_factory.mktemp("backends") / "vulkan"
    return export_model(
        seeing(SHALLOW), ExportSpec(out=out, target="executorch", backend="vulkan", precision="float16")
    )


@pytest.mark.slow
def test_an_export_for_a_backend_that_is_not_here_says_so_everywhere(vulkan):
    contract, report = read_contract(vulkan), read_report(vulkan)
    assert contract.state == json.loads((vulkan / "mobileclip.json").read_text())["state"] == "lowered, not run"
    assert (report.runtime, report.towers, report.passed) == (contract.state, (), False)
    assert report.failures == ("runtimes that have run it is 0, expected >= 1",)
    with pytest.raises(NotRunHereError, match=MATCH):
        verify_export(vulkan, trust=True)
    with pytest.raises(NotRunHereError, match=MATCH):
        load_export(vulkan, trust=True)


@pytest.mark.slow
def test_the_contract_names_what_stays_outside_of_the_backend(vulkan):
    for file in read_contract(vulkan).towers:
        assert file.backend == "vulkan"
        program = read_pte(vulkan / file.file)
        assert program.delegates == ("VulkanBackend",)
        assert file.outside == program.operators
        targets["executorch"].inspect(vulkan / file.file, file)
        with pytest.raises(ValueError, match="needs VulkanBackend, and the contract says XnnpackBackend"):
            targets["executorch"].inspect(vulkan / file.file, attrs.evolve(file, backend=None))
    text = next(file for file in read_contract(vulkan).towers if file.tower == "text")
    assert "aten::argmax.out" in text.outside


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="coremltools is not for it")
def test_core_ml_computes_each_tower_whole(tmp_path, capfd):
    spec = ExportSpec(out=tmp_path / "out", target="executorch", backend="coreml")
    folder = export_model(seeing(SHALLOW), spec)
    said = capfd.readouterr().err.splitlines()
    assert [line.split(" in ")[0].split(":")[0] for line in said] == [
        "writing image.pte",
        "image.pte is lowered, not run",
        "writing text.pte",
        "text.pte is lowered, not run",
    ]
    for file in read_contract(folder).towers:
        assert (file.backend, file.outside) == ("coreml", ())
        assert read_pte(folder / file.file).delegates == ("CoreMLBackend",)
