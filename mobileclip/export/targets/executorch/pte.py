"""What a `.pte` file holds, read without its runtime: inputs, outputs, and all numbers in it.

By functions that ExecuTorch calls internal. Of release 1.5.1's public ones, `executorch.runtime` tells methods, inputs
and outputs, and neither backends nor operations nor numbers; `pretty_print` and `pte_tool` get programs from the same
internal functions.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mobileclip.export.targets.executorch.backends import XNNPACK
from mobileclip.export.targets.pt2e import quiet
from mobileclip.machine import raise_machine_fault

METHOD = "forward"
# XNNPACK's graphs have a header of their own in front, and their constants behind, or by name in the file.
_XNNPACK_HEADER_BYTES = 30
# Bounds of outputs that have none, as the compiler of the schema writes them and JSON does not know them.
_NOT_FINITE = re.compile(r"(: )(-?)inf\b")
_FLOATS = {"HALF": np.float16, "FLOAT": np.float32, "DOUBLE": np.float64}
_XNNPACK_FLOATS = {"xnn_datatype_fp32": np.float32, "xnn_datatype_fp16": np.float16}


@attrs.frozen(kw_only=True)
class PteTensor:
    """An input or output.

    Args:
        dtype: its name in PyTorch, if it is one that a tower can have.
        shape: None where a size may vary.
        bound: shape at its largest.
    """

    dtype: str
    shape: tuple[int | None, ...]
    bound: tuple[int, ...]


@attrs.frozen(kw_only=True, eq=False)
class PteProgram:
    """What a `.pte` file holds.

    Args:
        inputs: of the method, in order.
        outputs: of the method, in order.
        numbers: floats that are stored, by a name that tells where; those inside XNNPACK's graphs too.
        delegates: what backends are called, each once; nothing is known of graphs of others than XNNPACK.
        operators: that ExecuTorch computes itself.
    """

    inputs: tuple[PteTensor, ...]
    outputs: tuple[PteTensor, ...]
    numbers: dict[str, npt.NDArray[Any]] = attrs.field(repr=False)
    delegates: tuple[str, ...]
    operators: tuple[str, ...]


def read_pte(path: Path) -> PteProgram:
    """Return what a file holds.

    Raises:
        ValueError: if it is no ExecuTorch program, or a damaged one.
    """
    data = path.read_bytes()
    with quiet():
        from executorch.exir._serialize import _deserialize_pte_binary

        try:
            return _read(_deserialize_pte_binary(data))
        except Exception as error:
            raise_machine_fault(error)
            # Whatever a damaged file makes of a reader that trusts it.
            raise ValueError(
                f"{path} is a damaged ExecuTorch program ({type(error).__name__}: {error}); export the model again"
            ) from error


def _read(file: Any) -> PteProgram:
    from executorch.exir import schema

    program = file.program
    (plan,) = [plan for plan in program.execution_plan if plan.name == METHOD]
    values = [value.val for value in plan.values]
    numbers = {}
    for index, value in enumerate(values):
        # The first buffer stands for there being none.
        if isinstance(value, schema.Tensor) and value.data_buffer_idx and value.allocation_info is None:
            dtype = _FLOATS.get(value.scalar_type.name)
            if dtype is not None:
                stored = program.constant_buffer[value.data_buffer_idx].storage
                numbers[f"constant {index}"] = np.frombuffer(stored, dtype, count=int(np.prod(value.sizes)))
    named = _named(file.named_data)
    for index, delegate in enumerate(plan.delegates):
        if delegate.id == XNNPACK:
            payload = program.backend_delegate_data[delegate.processed.index].data
            numbers |= {f"{name} of graph {index}": stored for name, stored in _xnnpack_numbers(bytes(payload), named)}
    return PteProgram(
        inputs=tuple(_tensor(values[index]) for index in plan.inputs),
        outputs=tuple(_tensor(values[index]) for index in plan.outputs),
        numbers=numbers,
        delegates=tuple(sorted({delegate.id for delegate in plan.delegates})),
        operators=tuple(sorted({".".join(filter(None, (one.name, one.overload))) for one in plan.operators})),
    )


def _named(data: Any) -> dict[str, bytes]:
    return {} if data is None else {key: data.buffers[entry.buffer_index] for key, entry in data.pte_data.items()}


def _dtype_name(tensor: Any) -> str:
    names = {"BYTE": "uint8", "INT": "int32", "LONG": "int64", "FLOAT": "float32"}
    return names.get(tensor.scalar_type.name, "another type")


def _tensor(tensor: Any) -> PteTensor:
    from executorch.exir.schema import TensorShapeDynamism

    bound = tuple(tensor.sizes)
    # A file does not say which of its sizes varies; of a tower, only the batch can.
    is_fixed = tensor.shape_dynamism == TensorShapeDynamism.STATIC
    return PteTensor(dtype=_dtype_name(tensor), shape=bound if is_fixed else (None, *bound[1:]), bound=bound)


def _xnnpack_numbers(payload: bytes, named: dict[str, bytes]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Yield the floats that one of XNNPACK's graphs stores: weights that are not rounded, biases, scales."""
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader

    header = XNNHeader.from_bytes(payload[:_XNNPACK_HEADER_BYTES])
    graph = _xnnpack_graph(payload[header.flatbuffer_offset :][: header.flatbuffer_size])
    for value in graph["xvalues"]:
        tensor = value["xvalue_union"]
        quantized = tensor.get("quant_params", {})
        tensor = tensor.get("tensor_value", tensor)
        for index, dtype in (
            (tensor["constant_buffer_idx"], _XNNPACK_FLOATS.get(tensor["datatype"])),
            (quantized.get("scale_buffer_idx", 0), np.float32),
        ):
            if index and dtype is not None:
                place = graph["constant_data"][index]
                stored = named.get(place["named_key"], payload[header.constant_data_offset :][place["offset"] :])
                yield f"{tensor['id_out']}.{index}", np.frombuffer(stored[: place["size"]], dtype)


def _xnnpack_graph(data: bytes) -> dict[str, Any]:
    """Return one of XNNPACK's graphs, as the compiler of its schema reads it; both come with ExecuTorch."""
    import executorch.backends.xnnpack.serialization as schemas
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    with tempfile.TemporaryDirectory() as temporary:
        schema, binary = Path(temporary) / "schema.fbs", Path(temporary) / "graph.bin"
        schema.write_bytes((resources.files(schemas) / schema.name).read_bytes())
        binary.write_bytes(data)
        _flatc_decompile(temporary, str(schema), str(binary))
        text = binary.with_suffix(".json").read_text(encoding="utf-8")
    graph: dict[str, Any] = json.loads(_NOT_FINITE.sub(r"\1\2Infinity", text))
    return graph
