"""LiteRT: models for Android, and for whatever else runs `.tflite` files."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mobileclip.export.contract import TowerFile
from mobileclip.export.int8 import EVERY_OUTPUT, Int8Form, dequantize_for_each_user
from mobileclip.export.spec import ExportSpec, TextDtype
from mobileclip.export.targets.base import CPU, Run, Target, Written, device_called, kept_stderr, readable
from mobileclip.export.targets.torch import save_pt2
from mobileclip.export.towers import TowerExport, set_attention, written_out_attention
from mobileclip.hardware import Precision, threads_or_default
from mobileclip.storage import printable


@attrs.frozen
class LiteRTTarget(Target):
    """LiteRT from an exported program, by Google's converter, with XNNPACK's kernels on the processor.

    The converter runs in an environment of its own, which the spec names. Files take one input at a time; token ids are
    int32. A causal text tower has a signature for each length of rows beside `serving_default`: `length_8` and so on.

    Source: github.com/google-ai-edge/litert-torch.
    """

    suffix: str = ".tflite"
    libraries: tuple[str, ...] = ("ai-edge-litert", "ai-edge-quantizer")
    modules: tuple[str, ...] = ("ai_edge_litert.interpreter", "ai_edge_quantizer.quantizer")
    extra: str = "litert"
    text_dtype: TextDtype = "int32"
    # The converter looks nothing up in tables of float16; `with_quantised_weights` makes them of its file.
    int8: Int8Form = Int8Form(signed=True, outputs=EVERY_OUTPUT, largest_weight=127, float16_tables=False)
    computes: tuple[Precision, ...] = ("float32",)
    precisions: tuple[Precision, ...] = ("float32", "float16", "int8", "int8-weights")
    cuts_texts: bool = True
    runtime: str = "litert"

    def elsewhere(self, spec: ExportSpec) -> dict[str, str]:
        """Return the version of the converter.

        Raises:
            ValueError: if there is none where the spec says, or the batch is to be dynamic.
        """
        if spec.dynamic_batch:
            raise ValueError(
                "the target 'litert' takes one input at a time: its converter fixes the batch; leave dynamic-batch out"
            )
        return {CONVERTER: converter_version(spec.converter)}

    def export(self, tower: TowerExport, path: Path) -> Written:
        """Write one tower.

        Raises:
            ValueError: if the converter fails.
        """
        precision, model = tower.spec.precision, converted(tower, self.graph(tower))
        if precision == "int8":
            model = with_float_ends(model)
        if precision != "float32":
            model = with_quantised_weights(model, precision)
        path.write_bytes(with_notes(model, tower.notes))
        return self.written(tower)

    def open(self, path: Path, tower: TowerFile, *, device: str = CPU, num_threads: int | None = None) -> Run:
        """Return a function that runs a file with LiteRT on the processor.

        Raises:
            ValueError: if it cannot be read.
        """
        device_called(device, {CPU: CPU}, self.runtime)
        names = {length: signature_of(length) for length in tower.lengths[:-1]}
        functions = _load(path, [SIGNATURE, *names.values()], threads_or_default(num_threads))

        def run(inputs: Tensor) -> tuple[Tensor, ...]:
            function = functions[names.get(inputs.shape[1], SIGNATURE)]
            found = function(**{tower.input_name: inputs.numpy()})
            return tuple(torch.from_numpy(found[name]) for name in tower.outputs)

        return run


def _load(path: Path, names: Sequence[str], num_threads: int) -> dict[str, Any]:
    """Return functions of a file by name; it is read whole, so that it may be replaced meanwhile."""
    from ai_edge_litert.interpreter import Interpreter

    with kept_stderr() as said, readable(path, "LiteRT", "pip install -U ai-edge-litert", said):
        interpreter = Interpreter(model_content=path.read_bytes(), num_threads=num_threads)
        interpreter.allocate_tensors()
        return {name: interpreter.get_signature_runner(name) for name in names}


CONVERTER = "litert-torch"
"""The converter's distribution."""
INSTALL = f"python3 -m venv litert-converter && litert-converter/bin/pip install '{CONVERTER}>=0.10'"
"""What makes an environment with the converter."""

_VERSION = f"import sys, importlib.metadata; sys.stdout.write(importlib.metadata.version({CONVERTER!r}))"
_SCRIPT = Path(__file__).with_name("litert_converter.py")


def converter_version(python: Path | None) -> str:
    """Return the version of the converter of an environment.

    Args:
        python: of that environment.

    Raises:
        ValueError: if there is none, or no converter in it; the message has the commands that make one.
    """
    if python is None:
        raise ValueError(
            "the target 'litert' is written by Google's converter, which wants an environment of its own. Make one: "
            f"{INSTALL}; and name it: --converter litert-converter/bin/python"
        )
    found = _run([str(python), "-I", "-c", _VERSION])
    if found.returncode:
        raise ValueError(f"--converter {python} has no converter ({_last_words(found)}). Make one: {INSTALL}")
    return found.stdout


def converted(tower: TowerExport, graph: nn.Module) -> bytes:
    """Return a tower as a `.tflite` file holds it, in int8 where that is asked for, in float32 otherwise.

    The converter's requirements and this library's exclude each other (release 0.10 wants typing-extensions before
    4.13), so the program goes to another Python as a file.

    Args:
        tower: of a spec that names that Python.
        graph: of it, as the target gives it; changed in place.

    Raises:
        ValueError: if the converter fails; the message says what to do.
    """
    python = tower.spec.converter
    assert python is not None, "a spec without a converter is refused"
    with tempfile.TemporaryDirectory() as temporary:
        programs, path = Path(temporary) / "programs", Path(temporary) / "tower.tflite"
        programs.mkdir()
        for name, program in _programs(tower, graph).items():
            save_pt2(program, programs / f"{name}.pt2")
        precision = ["int8"] if tower.spec.precision == "int8" else []
        done = _run([str(python), "-I", str(_SCRIPT), str(programs), str(path), *precision])
        if done.returncode:
            raise ValueError(
                f"LiteRT's converter failed: {_last_words(done)}; try a newer one, in --converter {python}: pip "
                f"install -U {CONVERTER}"
            )
        return path.read_bytes()


def _programs(tower: TowerExport, graph: nn.Module) -> dict[str, torch.export.ExportedProgram]:
    """Return a tower as torch.export sees it, its input and outputs by name: a signature for each length of texts."""
    # The converter has no attention of one operation.
    set_attention(graph, written_out_attention)
    named = _Named(graph, tower.output_names)
    shapes = {SIGNATURE: tower.input_shape} | {signature_of(length): (length,) for length in tower.lengths[:-1]}
    programs = {}
    for name, shape in shapes.items():
        example = torch.zeros(1, *shape, dtype=getattr(torch, tower.input_dtype))
        programs[name] = torch.export.export(named, (), {tower.input_name: example}, strict=False)
        dequantize_for_each_user(programs[name])
    return programs


class _Named(nn.Module):
    """A graph whose input and outputs have names, which the converter takes over."""

    def __init__(self, tower: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.tower, self.names = tower, names

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        (given,) = inputs.values()
        outputs = self.tower(given)
        return dict(zip(self.names, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the Python of the converter's environment; how it ended is for the caller.

    Raises:
        ValueError: if it cannot be run.
    """
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)  # noqa: S603
    except OSError as error:
        raise ValueError(
            f"--converter {command[0]} cannot be run ({error.strerror}); it is the Python of an environment with "
            f"{CONVERTER}. Make one: {INSTALL}"
        ) from error


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
    return printable(said[-1], limit=300)


SIGNATURE = "serving_default"
"""What hosts call the function of a file; of texts, that of the whole context length."""

_FLOATS = {"FLOAT16": np.float16, "FLOAT32": np.float32, "FLOAT64": np.float64}


@attrs.frozen(kw_only=True, eq=False)
class Operation:
    """One operation.

    Args:
        kind: its name in the format, such as `CONV_2D`.
        output: name of the first value that it gives.
        weight: what it multiplies by or looks up, where that is stored as floats.
    """

    kind: str
    output: str
    weight: npt.NDArray[Any] | None = attrs.field(repr=False)


def signature_of(length: int) -> str:
    """Return the name of the signature for shorter rows of ids."""
    return f"length_{length}"


def operations_of(data: bytes) -> tuple[Operation, ...]:
    """Return the operations of a file that was written here, in order, signature after signature."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(data, 0)
    types, kinds = _names(schema.TensorType), _names(schema.BuiltinOperator)
    codes = [kinds[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]

    def stored(tensor: Any) -> npt.NDArray[Any] | None:
        data, dtype = model.buffers[tensor.buffer].data, _FLOATS.get(types[tensor.type])
        if data is None or dtype is None:
            return None
        return np.asarray(data).view(dtype).reshape(() if tensor.shape is None else tensor.shape)

    return tuple(
        Operation(
            kind=codes[one.opcodeIndex],
            output=graph.tensors[one.outputs[0]].name.decode(),
            weight=stored(graph.tensors[one.inputs[1]]) if len(one.inputs) > 1 else None,
        )
        for graph in model.subgraphs
        for one in graph.operators
    )


def with_notes(data: bytes, notes: Mapping[str, str]) -> bytes:
    """Return a file with metadata: entries of a name and a text each.

    Args:
        data: of a file that was written here.
        notes: texts by name; the one called `name` is the model's description too.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(data))
    model.description = notes.get("name", "")
    model.metadata = list(model.metadata or [])
    for name, text in notes.items():
        entry, buffer = schema.MetadataT(), schema.BufferT()
        entry.name, entry.buffer, buffer.data = name, len(model.buffers), list(text.encode())
        model.buffers.append(buffer)
        model.metadata.append(entry)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def with_float_ends(data: bytes) -> bytes:
    """Return a file whose input is quantised inside, and whose outputs are dequantised there.

    Where these come first and last, the converter makes int8 of the input and the outputs themselves.

    Args:
        data: of a file that was written here.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(data))
    for signature in model.signatureDefs:
        _give_float_ends(model, model.subgraphs[signature.subgraphIndex], signature)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _give_float_ends(model: Any, graph: Any, signature: Any) -> None:
    from ai_edge_litert import schema_py_generated as schema

    def float_of(index: int) -> int:
        """Add a float tensor that takes the name of one in int8."""
        one, other = graph.tensors[index], schema.TensorT()
        other.name, other.shape, other.type, other.buffer = one.name, one.shape, schema.TensorType.FLOAT32, 0
        one.name += b"_int8"
        graph.tensors.append(other)
        return len(graph.tensors) - 1

    def operator(kind: int, taken: int, given: int) -> Any:
        code, one = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode = code.deprecatedBuiltinCode = kind
        one.opcodeIndex, one.inputs, one.outputs = len(model.operatorCodes), [taken], [given]
        model.operatorCodes.append(code)
        return one

    places = {one: one for one in (*graph.inputs, *graph.outputs)}
    for entry in (*signature.inputs, *signature.outputs):
        index = entry.tensorIndex
        if graph.tensors[index].type != schema.TensorType.INT8:
            continue
        entry.tensorIndex = places[index] = float_of(index)
        if entry in signature.inputs:
            graph.operators.insert(0, operator(schema.BuiltinOperator.QUANTIZE, entry.tensorIndex, index))
        else:
            graph.operators.append(operator(schema.BuiltinOperator.DEQUANTIZE, index, entry.tensorIndex))
    graph.inputs, graph.outputs = ([places[one] for one in ends] for ends in (graph.inputs, graph.outputs))


def _names(codes: type) -> dict[int, str]:
    return {value: name for name, value in vars(codes).items() if isinstance(value, int)}


_TABLE = "EMBEDDING_LOOKUP"
_DEPTHWISE = "DEPTHWISE_CONV_2D"
WEIGHTED = ("CONV_2D", _DEPTHWISE, "FULLY_CONNECTED", _TABLE)
"""Operations that have weights."""


def with_quantised_weights(model: bytes, precision: Precision) -> bytes:
    """Return a file whose weights are stored in lower precision; all else stays.

    - int8: layers are int8 already; tables have float16.
    - float16: weights are stored in it, and become float32 when the file is opened. A runtime on a GPU
      computes in float16 instead.
    - int8-weights: weights but those of grouped convolutions have 8 bits without a zero point, with a scale for each
      output channel, and for each row of a table. They become float32 too.

    Args:
        model: as the converter writes it.
        precision: of the export.
    """
    kinds = {"int8": (_TABLE,), "int8-weights": tuple(one for one in WEIGHTED if one != _DEPTHWISE)}.get(
        precision, WEIGHTED
    )
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), kept_stderr():
        # Bars of the quantiser, notes of the runtime, and a warning of the memory that watching all values takes.
        warnings.simplefilter("ignore")
        from ai_edge_quantizer import qtyping, quantizer, recipe_manager

        wanted = recipe_manager.RecipeManager()
        for one in operations_of(model):
            if one.kind not in kinds or one.weight is None:
                continue
            scope, operation = f"^{re.escape(one.output)};?$", qtyping.TFLOperationName(one.kind)
            if precision != "int8-weights":
                as_floats = quantizer.AlgorithmName.FLOAT_CASTING
                wanted.add_weight_only_config(scope, operation, num_bits=16, algorithm_key=as_floats)
            elif one.kind == _TABLE:
                # Rows become float32 when they are looked up, so the table stays small.
                wanted.add_dynamic_config(scope, operation, num_bits=8)
            else:
                wanted.add_weight_only_config(scope, operation, num_bits=8)
        if not wanted.get_quantization_recipe():
            return model
        made = quantizer.Quantizer(model, wanted.get_quantization_recipe())
        return bytes(made.quantize(enable_progress_report=False).quantized_model)
