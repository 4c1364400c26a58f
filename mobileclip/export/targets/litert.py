"""LiteRT: models for Android, and for all other hosts that run `.tflite` files."""

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
from mobileclip.export.targets.base import CPU, Run, Target, WrittenFile, device_of_runtime, kept_stderr, readable
from mobileclip.export.targets.torch import save_pt2
from mobileclip.export.towers import TowerExport, set_attention, written_out_attention
from mobileclip.hardware import Precision, threads_or_default
from mobileclip.storage import printable


@attrs.frozen
class LiteRTTarget(Target):
    """LiteRT files from Google's converter; on the CPU, XNNPACK's kernels run the files.

    The converter runs in a separate environment, given by `ExportSpec.converter`. Files accept one input at a time, and
    token ids are int32. The file of a causal text tower has the signature `serving_default`, and a signature such as
    `length_8` for each shorter row length.

    Source: github.com/google-ai-edge/litert-torch.
    """

    suffix: str = ".tflite"
    libraries: tuple[str, ...] = ("ai-edge-litert", "ai-edge-quantizer")
    modules: tuple[str, ...] = ("ai_edge_litert.interpreter", "ai_edge_quantizer.quantizer")
    extra: str = "litert"
    text_dtype: TextDtype = "int32"
    # The converter does not support float16 lookup tables; `with_quantised_weights` adds the tables to the file.
    int8: Int8Form = Int8Form(signed=True, outputs=EVERY_OUTPUT, largest_weight=127, float16_tables=False)
    computes: tuple[Precision, ...] = ("float32",)
    precisions: tuple[Precision, ...] = ("float32", "float16", "int8", "int8-weights")
    cuts_texts: bool = True
    runtime: str = "litert"

    def elsewhere(self, spec: ExportSpec) -> dict[str, str]:
        """Return the version of the converter.

        Raises:
            ValueError: if the spec names no environment with a converter, or asks for a dynamic batch.
        """
        if spec.dynamic_batch:
            raise ValueError(
                "the target 'litert' accepts one input at a time, since the converter fixes the batch size; leave "
                "--dynamic-batch out"
            )
        return {CONVERTER: converter_version(spec.converter)}

    def export(self, tower: TowerExport, path: Path) -> WrittenFile:
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
        """Return a function that runs a file with LiteRT on the CPU.

        Raises:
            ValueError: if the file cannot be read.
        """
        device_of_runtime(device, {CPU: CPU}, self.runtime)
        names = {length: signature_of(length) for length in tower.lengths[:-1]}
        functions = _load(path, [SIGNATURE, *names.values()], threads_or_default(num_threads))

        def run(inputs: Tensor) -> tuple[Tensor, ...]:
            function = functions[names.get(inputs.shape[1], SIGNATURE)]
            found = function(**{tower.input_name: inputs.numpy()})
            return tuple(torch.from_numpy(found[name]) for name in tower.outputs)

        return run


def _load(path: Path, names: Sequence[str], num_threads: int) -> dict[str, Any]:
    """Return the functions of a file by name; all data is in memory, so that other processes may replace the file."""
    from ai_edge_litert.interpreter import Interpreter

    with kept_stderr() as said, readable(path, "LiteRT", "pip install -U ai-edge-litert", said):
        interpreter = Interpreter(model_content=path.read_bytes(), num_threads=num_threads)
        interpreter.allocate_tensors()
        return {name: interpreter.get_signature_runner(name) for name in names}


CONVERTER = "litert-torch"
"""Name of the converter's pip package."""
INSTALL = f"python3 -m venv litert-converter && litert-converter/bin/pip install '{CONVERTER}>=0.10'"
"""Command that creates an environment with the converter."""

_VERSION = f"import sys, importlib.metadata; sys.stdout.write(importlib.metadata.version({CONVERTER!r}))"
_SCRIPT = Path(__file__).with_name("litert_converter.py")


def converter_version(python: Path | None) -> str:
    """Return the version of the converter in an environment.

    Args:
        python: path of the environment's Python.

    Raises:
        ValueError: if `python` is None or the environment has no converter; the message gives the install commands.
    """
    if python is None:
        raise ValueError(
            "the target 'litert' needs Google's converter in a separate environment. Create the "
            f"environment: {INSTALL}; then pass its Python: --converter litert-converter/bin/python"
        )
    found = _run([str(python), "-I", "-c", _VERSION])
    if found.returncode:
        raise ValueError(
            f"the environment of --converter {python} has no converter ({_last_words(found)}). Create an environment: "
            f"{INSTALL}"
        )
    return found.stdout


def converted(tower: TowerExport, graph: nn.Module) -> bytes:
    """Convert a tower to the content of a `.tflite` file: in int8 if the precision is int8, otherwise in float32.

    The requirements of the converter and of this library conflict (release 0.10 needs typing-extensions before 4.13),
    so the function passes the program in a file to the Python of the converter's environment.

    Args:
        tower: tower to convert; its spec has the path of the converter environment's Python.
        graph: graph of the tower from the target; the function changes the graph in place.

    Raises:
        ValueError: if the converter fails; the message gives the converter's error and the update command.
    """
    python = tower.spec.converter
    assert python is not None, "expected a spec with a converter"
    with tempfile.TemporaryDirectory() as temporary:
        programs, path = Path(temporary) / "programs", Path(temporary) / "tower.tflite"
        programs.mkdir()
        for name, program in _programs(tower, graph).items():
            save_pt2(program, programs / f"{name}.pt2")
        precision = ["int8"] if tower.spec.precision == "int8" else []
        done = _run([str(python), "-I", str(_SCRIPT), str(programs), str(path), *precision])
        if done.returncode:
            raise ValueError(
                f"LiteRT's converter failed: {_last_words(done)}; try a newer converter in --converter {python}: pip "
                f"install -U {CONVERTER}"
            )
        return path.read_bytes()


def _programs(tower: TowerExport, graph: nn.Module) -> dict[str, torch.export.ExportedProgram]:
    """Return the exported programs of a tower by signature, one for each text length, with named inputs and outputs."""
    # The converter has no fused attention operation.
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
    """A graph with named inputs and outputs; the converter keeps the names."""

    def __init__(self, tower: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.tower, self.names = tower, names

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        (given,) = inputs.values()
        outputs = self.tower(given)
        return dict(zip(self.names, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the Python of the converter's environment; the caller checks the exit status.

    Raises:
        ValueError: if the Python cannot be run.
    """
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)  # noqa: S603
    except OSError as error:
        raise ValueError(
            f"--converter {command[0]} cannot be run ({error.strerror}); expected the Python of an environment with "
            f"{CONVERTER}. Create the environment: {INSTALL}"
        ) from error


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
    return printable(said[-1], limit=300)


SIGNATURE = "serving_default"
"""Name of a file's main signature; for texts, the signature of the full context length."""

_FLOATS = {"FLOAT16": np.float16, "FLOAT32": np.float32, "FLOAT64": np.float64}


@attrs.frozen(kw_only=True, eq=False)
class Operation:
    """One operation of a `.tflite` file.

    Args:
        kind: name of the operation in the format, such as `CONV_2D`.
        output: name of the operation's first output.
        weight: weight or lookup table of the operation; None for an operation without float weights.
    """

    kind: str
    output: str
    weight: npt.NDArray[Any] | None = attrs.field(repr=False)


def signature_of(length: int) -> str:
    """Return the name of the signature for rows of `length` ids, shorter than the context length."""
    return f"length_{length}"


def operations_of(data: bytes) -> tuple[Operation, ...]:
    """Return the operations of a file from this library, in order of execution, one signature after another."""
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
    """Return the content of a file with added metadata entries.

    Args:
        data: content of a file written by this library.
        notes: metadata texts by name; the entry `name` also becomes the description of the model.
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
    """Return the content of an int8 file with float inputs and outputs in place of int8 inputs and outputs.

    The converter removes a quantisation at the start of a graph and a dequantisation at the end, so that the input and
    the output become int8; this function adds both operations again.

    Args:
        data: content of a file written by this library.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(data))
    for signature in model.signatureDefs:
        _give_float_ends(model, model.subgraphs[signature.subgraphIndex], signature)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _give_float_ends(model: Any, graph: Any, signature: Any) -> None:
    from ai_edge_litert import schema_py_generated as schema

    def float_of(index: int) -> int:
        """Add a float tensor that takes over the name of an int8 tensor."""
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
    """Return the content of a file with weights in a lower precision; all other content is unchanged.

    - int8: layers are already int8; the function stores lookup tables in float16.
    - float16: the function stores weights in float16. A runtime on a GPU computes in float16; any other runtime
      converts the weights to float32 on opening the file.
    - int8-weights: the function stores weights in 8 bits, without zero points, and with one scale per output channel or
      per row of a table. A runtime converts the weights to float32. The weights of grouped convolutions are unchanged.

    Args:
        model: content of the file from the converter.
        precision: precision of the export.
    """
    kinds = {"int8": (_TABLE,), "int8-weights": tuple(one for one in WEIGHTED if one != _DEPTHWISE)}.get(
        precision, WEIGHTED
    )
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), kept_stderr():
        # Silences progress bars of the quantiser, messages of the runtime, and a warning about memory use.
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
                # Only the rows that are looked up become float32, so the table stays small.
                wanted.add_dynamic_config(scope, operation, num_bits=8)
            else:
                wanted.add_weight_only_config(scope, operation, num_bits=8)
        if not wanted.get_quantization_recipe():
            return model
        made = quantizer.Quantizer(model, wanted.get_quantization_recipe())
        return bytes(made.quantize(enable_progress_report=False).quantized_model)
