"""What the JSON texts of an exported program may hold: numbers, names and known operations, and nothing that is run.

PyTorch makes Python of names, looks operations up by text, evaluates sizes, executes guards and unpickles what is not
a plain tensor. So a name here is a name, a size is a number or one symbol, and an operation is one of a list.
"""

from __future__ import annotations

import math
from typing import Any

from mobileclip.export.targets.torch.json_checks import (
    Check,
    array,
    flag,
    integer,
    number,
    only,
    optional,
    record,
    table,
    text,
    union,
)
from mobileclip.strict import parse_json

_MAJOR = 8  # of PyTorch's own schema; a minor version adds keys, and those that are not known are refused
_MOST, _MOST_SIDE, _MOST_DIMS, _MOST_OUTPUTS = 50_000, 2**31 - 1, 8, 65

# Those that give a new tensor, a view or a size of what they are given; PyTorch's own rounding of int8 beside them.
_ATEN = (
    "_assert_tensor_metadata|_native_batch_norm_legit_no_training|_softmax|_to_copy|_unsafe_view|abs|"
    "adaptive_avg_pool2d|add|addmm|alias|amax|amin|arange|argmax|argmin|avg_pool2d|baddbmm|batch_norm|bmm|cat|chunk|clamp|clamp_max|clamp_min|"
    "clone|concat|constant_pad_nd|contiguous|conv1d|conv2d|convolution|cos|cumsum|detach|div|dropout|elu|"
    "embedding|eq|erf|exp|exp2|expand|expand_as|flatten|flip|floor|full|full_like|gather|ge|gelu|"
    "group_norm|gt|hardsigmoid|hardswish|hardtanh|index|index_select|layer_norm|le|leaky_relu|"
    "lift_fresh_copy|linalg_vector_norm|linear|log|logical_and|logical_not|logical_or|lt|masked_fill|"
    "matmul|max|max_pool2d|maximum|mean|min|minimum|mish|mm|movedim|mul|narrow|native_batch_norm|"
    "native_group_norm|native_layer_norm|ne|neg|new_full|new_ones|new_zeros|norm|ones|ones_like|pad|"
    "permute|pixel_shuffle|pixel_unshuffle|pow|promote_types|reciprocal|relu|relu6|repeat|"
    "repeat_interleave|reshape|rms_norm|roll|rsqrt|rsub|scaled_dot_product_attention|select|sigmoid|sign|"
    "silu|sin|slice|softmax|softplus|split|split_with_sizes|sqrt|square|squeeze|stack|std|sub|sum|"
    "swapaxes|sym_size|t|tanh|tile|to|transpose|tril|triu|type_as|unbind|unflatten|unsqueeze|"
    "upsample_bicubic2d|upsample_bilinear2d|upsample_nearest2d|var|view|view_as|where|zeros|zeros_like"
)
_ROUNDING = "(de)?quantize_per_(tensor|channel)"
_OPERATION = rf"torch\.ops\.(aten\.({_ATEN})|quantized_decomposed\.{_ROUNDING})\.(?!\w*out|dim_m)\w{{1,40}}"

_name = text(r"[A-Za-z_]\w{0,500}")
# Dunders would lead from a module to its class.
_PATH = r"(?!__)\w{1,200}(\.(?!__)\w{1,200}){0,40}"
_path = text(_PATH)
_symbol_name = text(r"s\d{1,6}")
# By the number that the schema has for a type.
_ITEM_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 12: 1, 13: 2}
_dtype = only(*_ITEM_BYTES)
_strided, _cpu = only(7), record({"type": only("cpu"), "index": only(None, 0)})
_int, _side = integer(), integer(0, _MOST_SIDE)
_tensor_name = record({"name": _name})
_free_text = text(r".{0,20000}")

_symbol = record(
    {"expr_str": text(r"(\d{1,9}\*)?(s\d{1,6}|Symbol\('s\d{1,6}'(, (positive|integer)=True){0,2}\))")},
    {"hint": optional(union(as_int=_side))},
)
_size: Check = union(as_int=_side, as_expr=_symbol)


def _tensor(size: Check) -> Check:
    return record(
        {
            "dtype": _dtype,
            "sizes": array(size, most=_MOST_DIMS),
            "requires_grad": flag,
            "device": _cpu,
            "strides": array(size, most=_MOST_DIMS),
            "storage_offset": size,
            "layout": _strided,
        }
    )


_sym_int = union(as_name=_name, as_int=_int)
_argument: Check = union(
    as_none=flag,
    as_tensor=_tensor_name,
    as_tensors=array(_tensor_name, most=_MOST),
    as_optional_tensors=array(union(as_tensor=_tensor_name, as_none=flag), most=_MOST_DIMS),
    as_int=_int,
    as_ints=array(_int, most=_MOST),
    as_float=number,
    as_floats=array(number, most=_MOST),
    as_bool=flag,
    as_bools=array(flag, most=_MOST),
    as_string=text(r"[a-z_]{0,20}"),
    as_sym_int=_sym_int,
    as_sym_ints=array(_sym_int, most=_MOST_DIMS),
    as_scalar_type=_dtype,
    as_memory_format=only(1, 2, 4),
    as_layout=_strided,
    as_device=_cpu,
)
_result = union(
    as_tensor=_tensor_name,
    as_tensors=array(_tensor_name, most=_MOST),
    as_sym_int=union(as_name=_name),
    as_none=flag,
)
_node = record(
    {
        "target": text(_OPERATION, "an operation that is known here"),
        "inputs": array(record({"name": _name, "arg": _argument}, {"kind": optional(only(1, 2))}), most=40),
        "outputs": array(_result, most=40),
        # Where an operation comes from. `source_fn_stack`, which would be looked up by name, is not among it.
        "metadata": table(only("stack_trace", "nn_module_stack", "torch_fn", "from_node"), _free_text, most=4),
    },
    {"is_hop_single_tensor_return": only(None), "name": optional(_name)},
)
_graph = record(
    {
        "inputs": array(union(as_tensor=_tensor_name), most=_MOST),
        "outputs": array(union(as_tensor=_tensor_name), most=_MOST_OUTPUTS),
        "nodes": array(_node, most=_MOST),
        "tensor_values": table(_name, _tensor(_size), most=2 * _MOST),
        "sym_int_values": table(_name, _size, most=_MOST),
        "sym_bool_values": only({}),
    },
    {"is_single_tensor_return": flag, "custom_obj_values": only({}), "sym_float_values": only({})},
)
_input = union(
    user_input=record({"arg": union(as_tensor=_tensor_name)}),
    parameter=record({"arg": _tensor_name, "parameter_name": _path}),
    buffer=record({"arg": _tensor_name, "buffer_name": _path, "persistent": flag}),
    tensor_constant=record({"arg": _tensor_name, "tensor_constant_name": _path}),
)
_output = union(user_output=record({"arg": union(as_tensor=_tensor_name)}))


def _tree(kind: str | None, context: str | None, *children: Any) -> dict[str, Any]:
    return {"type": kind, "context": context, "children_spec": list(children)}


_LEAF = _tree(None, None)
# One tensor comes in; one goes out, or a tuple of several.
_TAKES = [1, _tree("builtins.tuple", "null", _tree("builtins.tuple", "null", _LEAF), _tree("builtins.dict", "[]"))]
_SEVERAL = [[1, _tree("builtins.tuple", "null", *[_LEAF] * count)] for count in range(2, _MOST_OUTPUTS + 1)]


def _json_of(*expected: Any) -> Check:
    def check(value: Any, path: str) -> None:
        if not isinstance(value, str) or len(value) > 10_000 or parse_json(value) not in expected:
            raise ValueError(f"{path} is not that of a program with one input, whose outputs are tensors")

    return check


_signature = record(
    {
        "inputs": array(_argument, most=1),
        "outputs": array(_argument, most=_MOST_OUTPUTS),
        "in_spec": _json_of(_TAKES),
        "out_spec": _json_of([1, _LEAF], *_SEVERAL),
    },
    {"forward_arg_names": optional(array(_name, most=1))},
)
_module = record({"fqn": text(rf"|{_PATH}(@\d{{1,6}})?")}, {"signature": optional(_signature)})
_program = record(
    {
        "graph_module": record(
            {
                "graph": _graph,
                "signature": record(
                    {"input_specs": array(_input, most=_MOST), "output_specs": array(_output, most=_MOST_OUTPUTS)}
                ),
                "module_call_graph": array(_module, most=_MOST),
            },
            {"metadata": only({}), "treespec_namedtuple_fields": only({})},
        ),
        "opset_version": table(only("aten"), integer(0, 10_000), most=1),
        "range_constraints": table(
            _symbol_name, record({"min_val": optional(_side), "max_val": optional(_side)}), most=_MOST_DIMS
        ),
        "schema_version": record({"major": only(_MAJOR), "minor": integer(0, 10_000)}),
    },
    {
        "verifiers": array(only("TRAINING", "ATEN"), most=1),
        "torch_version": text(r"[\w.+<=-]{0,60}"),
        "guards_code": array(only(), most=0),
    },
)
_weights = record(
    {
        "config": table(
            _path,
            record(
                {
                    "path_name": text(r"(weight|tensor)_\d{1,6}"),
                    "is_param": flag,
                    "use_pickle": only(False),
                    "tensor_meta": _tensor(union(as_int=_side)),
                }
            ),
            most=_MOST,
        )
    }
)


def check_program(data: str) -> None:
    """Check the graph of an exported program.

    Raises:
        ValueError: if it holds anything that is not known to be harmless, or is of another version of the format.
    """
    found = parse_json(data)
    version = found.get("schema_version") if isinstance(found, dict) else None
    if isinstance(version, dict) and isinstance(version.get("major"), int) and version["major"] != _MAJOR:
        raise ValueError(f"its schema has the version {version['major']}, and {_MAJOR} is known here")
    _program(found, "model.json")


def check_weights(data: str, stored: dict[str, int]) -> None:
    """Check a table of tensors: each lies within the bytes of a member, and each member is of a tensor.

    Args:
        data: of the table.
        stored: bytes of the members that tensors may lie in, by name.

    Raises:
        ValueError: if a tensor is not plain, or is larger than what is stored of it.
    """
    found = parse_json(data)
    _weights(found, "config")
    used = set()
    for name, entry in found["config"].items():
        used.add(entry["path_name"])
        meta, num_bytes = entry["tensor_meta"], stored.get(entry["path_name"], -1)
        sizes, strides = ([side["as_int"] for side in meta[key]] for key in ("sizes", "strides"))
        if len(sizes) != len(strides):
            raise ValueError(f"the tensor {name} has {len(sizes)} sizes and {len(strides)} strides")
        steps = sum((side - 1) * stride for side, stride in zip(sizes, strides, strict=True))
        count, extent = math.prod(sizes), meta["storage_offset"]["as_int"] + steps + 1
        if (max(count, extent) if count else 0) * _ITEM_BYTES[meta["dtype"]] > num_bytes:
            raise ValueError(f"the tensor {name} is larger than what is stored of it")
    if unused := stored.keys() - used:
        raise ValueError(f"{min(unused)} is no tensor's")
