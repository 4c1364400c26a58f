"""ExecuTorch: what the files hold, that the runtime computes the model's embeddings with them, and damaged ones."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch

from mobileclip import reparameterize
from mobileclip.data import Tokenizer
from mobileclip.encoders import DualEncoderSpec
from mobileclip.export import (
    ExportSpec,
    TowerFile,
    bundled_samples,
    export_model,
    read_contract,
    read_report,
    targets,
    verify_export,
)
from mobileclip.export.describing import tower_file
from mobileclip.export.targets.executorch.lower import LARGEST_BATCH
from mobileclip.export.targets.executorch.pte import read_pte
from mobileclip.export.towers import TowerExport, calibration_inputs
from mobileclip.export.verification import Fallback
from mobileclip.extras import install
from mobileclip.inference.comparison import LEAST_COSINE
from mobileclip.inference.forms import with_one_token
from mobileclip.inference.optimization import weighted_layers
from mobileclip.serialization import to_json
from tests.errors import fails
from tests.export.models import MCI, PIXELS, SHALLOW, TOKENS, pixels, seeing


@attrs.frozen(kw_only=True)
class Written:
    """A tower as `export_model` gives it to the target, and the file that is written of it."""

    export: TowerExport
    path: Path
    file: TowerFile

    def open(self):
        run = targets["executorch"].open(self.path, self.file)
        return lambda inputs: run(inputs)[0]

    def inspect(self, **changes):
        targets["executorch"].inspect(self.path, attrs.evolve(self.file, **changes))


def written(model, tower, folder, *, layers=(), factor=None, **options):
    encoder = getattr(reparameterize(model), f"{tower}_encoder")
    spec = ExportSpec(out=folder / "out", target="executorch", **options)
    calibration = calibration_inputs(encoder, bundled_samples(), spec.preprocess)[::6]
    export = TowerExport(
        tower=tower,
        encoder=with_one_token(encoder),
        spec=spec,
        calibration=calibration if factor is None else factor * calibration,
        fallback=Fallback(layers=frozenset(layers)),
    )
    path = folder / f"{tower}.pte"
    compute = targets["executorch"].export(export, path)
    assert compute == spec.precision
    return Written(export=export, path=path, file=tower_file(export, path.name, compute))


@pytest.fixture(scope="module")
def image(convolutional, tmp_path_factory):
    """With everything as it is by default."""
    return written(convolutional, "image", tmp_path_factory.mktemp("executorch"))


@pytest.fixture(scope="module")
def shallow():
    return seeing(SHALLOW)


@pytest.fixture(scope="module")
def text(shallow, tmp_path_factory):
    """With nothing as it is by default."""
    folder = tmp_path_factory.mktemp("executorch")
    options = {"precision": "int8", "dynamic_batch": True, "normalize": False}
    return written(shallow, "text", folder, layers=["layers.0.ffn.fc1"], **options)


@pytest.fixture(scope="module")
def float_text(shallow, tmp_path_factory):
    """In float32, which takes a third of the time of `text`."""
    return written(shallow, "text", tmp_path_factory.mktemp("executorch"))


def tokens(count):
    return Tokenizer(TOKENS)(bundled_samples().captions)[:count]


def cosines(ours, theirs):
    return torch.nn.functional.cosine_similarity(ours.double(), theirs.double())


def stored_in_float(written):
    """The layers whose values are in a file, in whatever order XNNPACK wants them."""
    numbers = [np.sort(stored) for stored in read_pte(written.path).numbers.values()]
    found = set()
    for name, layer in weighted_layers(written.export.encoder):
        expected = np.sort(layer.weight.detach().numpy().ravel())
        if any(stored.shape == expected.shape and np.array_equal(stored, expected) for stored in numbers):
            found.add(name)
    return found


def is_stored(tensor, written):
    """Whether a tensor is in a file, value by value, in its type."""
    expected = tensor.detach().numpy().ravel()
    return any(
        stored.dtype == expected.dtype and np.array_equal(stored, expected)
        for stored in read_pte(written.path).numbers.values()
    )


@torch.no_grad()
def test_embeddings_are_the_models(image, convolutional):
    images, run = pixels(PIXELS)[:4], image.open()
    ours = torch.cat([run(row[None]) for row in images])
    torch.testing.assert_close(ours, convolutional.encode_image(images, normalize=True), rtol=1e-4, atol=1e-5)
    assert stored_in_float(image) == {name for name, _ in weighted_layers(image.export.encoder)}
    with fails("export.takes-inputs-once-give", "1", "4"):
        run(images)


@pytest.mark.slow
@torch.no_grad()
def test_int8_and_batches_of_any_size(text, shallow):
    inputs, run = tokens(LARGEST_BATCH + 1), text.open()
    together = run(inputs[:5])
    similar = cosines(together, shallow.encode_text(inputs[:5]))
    assert 0.98 < float(similar.min()) < 1 - 1e-6, "int8 is near float32, and not the same"
    torch.testing.assert_close(torch.cat([run(row[None]) for row in inputs[:5]]), together, rtol=1e-3, atol=1e-3)
    # What came out before is not written over.
    kept = together.clone()
    assert len(run(inputs[:LARGEST_BATCH])) == LARGEST_BATCH
    torch.testing.assert_close(together, kept, rtol=0, atol=0)
    with pytest.raises(ValueError, match=rf"takes up to {LARGEST_BATCH} inputs at once, and got {LARGEST_BATCH + 1}"):
        run(inputs)


@pytest.mark.slow
@torch.no_grad()
def test_float16_of_wide_layers(tmp_path):
    """From 256 channels on, ExecuTorch's own layer norm is wrong in float16, and says nothing."""
    model = seeing(DualEncoderSpec(image=MCI, text=attrs.evolve(SHALLOW.text, width=256)))
    run = written(model, "text", tmp_path, precision="float16", normalize=False).open()
    ours, expected = torch.cat([run(row[None]) for row in tokens(4)]), model.encode_text(tokens(4))
    assert float(cosines(ours, expected).min()) > 0.9995
    torch.testing.assert_close(ours, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))


@pytest.mark.slow
def test_int8_is_all_but_the_fallback_and_tables_are_float16(text):
    assert stored_in_float(text) == text.export.fallback.layers
    table = text.export.encoder.token_embedding.weight
    assert table.dtype == torch.float32, "the model stays as it is"
    assert is_stored(table.half(), text)
    assert not is_stored(table, text)


@pytest.mark.slow
@pytest.mark.parametrize("tower", ["image", "text"])
def test_attention_is_xnnpacks(tower, request):
    """Nothing of it is left to the kernels that ExecuTorch itself has."""
    from executorch.exir._serialize import _deserialize_pte_binary

    path = request.getfixturevalue(tower).path
    (plan,) = _deserialize_pte_binary(path.read_bytes()).program.execution_plan
    operators = {operator.name for operator in plan.operators}
    assert "aten::sum" in operators or "aten::native_layer_norm" in operators, "others are found this way"
    assert not operators & {"aten::bmm", "aten::_softmax", "aten::any", "aten::logical_not", "aten::convolution"}
    assert {delegate.id for delegate in plan.delegates} == {"XnnpackBackend"}


@pytest.mark.slow
def test_what_the_contract_does_not_say_is_refused(image, text):
    image.inspect()
    text.inspect()
    match = r"has the inputs and outputs .* and the contract says .*; export the model again"
    for changes in ({"input_shape": (None, 3, 64, 64)}, {"output_shape": (1, 13)}, {"input_dtype": "uint8"}):
        with pytest.raises(ValueError, match=match):
            image.inspect(**changes)
    for changes in ({"input_dtype": "int32"}, {"input_shape": (16, 12)}):
        with pytest.raises(ValueError, match=match):
            text.inspect(**changes)


@pytest.mark.parametrize("export", ["float_text", pytest.param("text", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["layer", "table"])
def test_weights_that_are_not_finite_are_told(export, kind, request, tmp_path):
    """Those that XNNPACK holds, and those that ExecuTorch itself does."""
    text = request.getfixturevalue(export)
    encoder = text.export.encoder
    table = encoder.token_embedding.weight
    weight = encoder.layers[0].ffn.fc1.weight if kind == "layer" else table.half() if export == "text" else table
    values = weight.detach().numpy().copy()
    data = text.path.read_bytes()
    assert data.count(values.tobytes()) == 1
    broken = values.copy()
    broken.flat[3] = np.nan
    path = tmp_path / "text.pte"
    path.write_bytes(data.replace(values.tobytes(), broken.tobytes()))
    with fails("export.weight-holds-nan-infinity"):
        attrs.evolve(text, path=path).inspect()


def test_damaged_files_are_told(float_text, tmp_path):
    data = float_text.path.read_bytes()
    damaged = [b"", b"not a program" * 9, data[:40], data[: len(data) // 2], data[:64] + bytes(len(data) - 64)]
    broken = attrs.evolve(float_text, path=tmp_path / "text.pte")
    for content in damaged:
        broken.path.write_bytes(content)
        with fails("export.damaged-executorch-program-export", "text.pte"):
            broken.inspect()


@pytest.mark.slow
def test_files_that_have_changed_take_nothing_down_with_them(text, tmp_path):
    """In another process: what a runtime makes of a graph that has changed is not to be foreseen."""
    data = text.path.read_bytes()
    generator = np.random.default_rng(0)
    program = int.from_bytes(data[16:24], "little")
    for number in range(20):
        changed = bytearray(data)
        for place in generator.integers(64, program, 40):
            changed[place] ^= 0xFF
        (tmp_path / f"{number}.pte").write_bytes(changed)
    code = f"""
from pathlib import Path
from mobileclip.export import TowerFile, targets
from mobileclip.serialization import from_json
file = from_json({to_json(text.file)!r}, TowerFile)
for path in sorted(Path({str(tmp_path)!r}).glob("*.pte")):
    for look in (targets["executorch"].inspect, targets["executorch"].open):
        try:
            look(path, file)
        except ValueError as error:
            print("refused")
        else:
            print("taken")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout.split()
    assert len(said) == 40
    assert said.count("refused") > 20


def test_bfloat16_is_refused(transformers, tmp_path):
    spec = ExportSpec(out=tmp_path / "out", target="executorch", precision="bfloat16")
    with fails("export.target-precision-choose-precision", "executorch", "bfloat16", "float32"):
        export_model(transformers, spec)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["torchao", "executorch.exir", "executorch.runtime"])
def test_a_missing_extra_names_its_command(transformers, tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    name = missing.partition(".")[0]
    with pytest.raises(ImportError, match=re.escape(f"needs {name}: {install('executorch')}")):
        export_model(transformers, ExportSpec(out=tmp_path / "out", target="executorch"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_whole_exports(precision, transformers, tmp_path):
    """Through the command's own function, with several choices of layers in float32 where the first is not enough."""
    options = {"dynamic_batch": True, "preprocess": "uint8", "normalize": False} if precision == "int8" else {}
    spec = ExportSpec(out=tmp_path / "out", target="executorch", precision=precision, **options)
    folder = export_model(transformers, spec)
    contract, report = read_contract(folder), verify_export(folder, trust=True)
    assert report == read_report(folder)
    assert report.runtime == "executorch"
    assert [(tower.file, tower.compute) for tower in contract.towers] == [
        ("image.pte", precision),
        ("text.pte", precision),
    ]
    for tower in report.towers:
        assert tower.cosine_minimum > LEAST_COSINE[precision]
    # Random weights leave some captions all but equally near to a picture.
    assert {gate.name for gate in report.gates if not gate.passed} <= {"ranking agreement"}


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("tower", ["image", "text"])
def test_half_precision(convolutional, tower, tmp_path, capfd, caplog):
    """And nothing is printed or logged on the way; loggers stay as they were."""
    logger = logging.getLogger()
    with caplog.at_level(logging.INFO):
        before = (logger.level, list(logger.handlers), logger.manager.disable)
        half = written(convolutional, tower, tmp_path, precision="float16")
        half.inspect()
        run = half.open()
        assert (logger.level, list(logger.handlers), logger.manager.disable) == before
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    inputs = half.export.calibration
    encode = convolutional.encode_image if tower == "image" else convolutional.encode_text
    ours = torch.cat([run(row[None]) for row in inputs])
    assert float(cosines(ours, encode(inputs, normalize=True)).min()) > 0.9995
    kinds = {stored.dtype for stored in read_pte(half.path).numbers.values() if stored.size > 100}
    # XNNPACK wants the weights of convolutions in float32.
    assert kinds == {np.dtype(np.float16), np.dtype(np.float32)}


@pytest.mark.slow
def test_every_layer_of_a_convolutional_tower_is_int8(convolutional, tmp_path):
    assert not stored_in_float(written(convolutional, "image", tmp_path, precision="int8"))


@pytest.mark.slow
@torch.no_grad()
def test_ranges_are_those_of_the_calibration_data(transformers, tmp_path):
    """With ranges of inputs that are a hundredth of what comes, all that is beyond them is cut off."""
    images = pixels(PIXELS)[:1]
    found = []
    for factor in (None, 0.01):
        run = written(transformers, "image", tmp_path, precision="int8", factor=factor).open()
        found.append(float(cosines(run(images), transformers.encode_image(images, normalize=True))))
    assert found[0] > 0.98 > found[1]
