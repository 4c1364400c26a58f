"""Exported programs that want more than to be read: each is made of a sound one by one change."""

import copy
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import torch

from tests.trials.harness import CANARY, PickledCanary

MODEL = "models/model.json"
WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
_CALLED = CANARY.replace("'", '"')
CANARY_EVENT = "mobileclip.canary"


def read_pt2(path):
    """Return the members of a program, by name without the folder around them."""
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write_pt2(path, members):
    """Write members as PyTorch does; what it writes by itself is left to it."""
    writer = torch._C.PyTorchFileWriter(str(path))
    writer.set_min_version(6)
    for name, data in members.items():
        if not name.startswith(".data/") and name != "byteorder":
            writer.write_record(name, data, len(data))
    writer.write_end_of_file()


def pickled():
    stream = io.BytesIO()
    torch.save(PickledCanary(), stream)
    return stream.getvalue()


def edited(member):
    """Turn a function that changes what a JSON text holds into one that changes members."""

    def wrap(edit):
        def change(members):
            found = json.loads(members[member])
            edit(found)
            members[member] = json.dumps(found).encode()

        return change

    return wrap


def _first(program):
    return program["graph_module"]["graph"]["nodes"][0]


def _value(program):
    return next(iter(program["graph_module"]["graph"]["tensor_values"].values()))


def _graph(program):
    return program["graph_module"]["graph"]


def _rename(program, name):
    """Give the result of the first operation another name, wherever it is used."""
    old = json.dumps({"name": _first(program)["outputs"][0]["as_tensor"]["name"]})
    text = json.dumps(program).replace(old, json.dumps({"name": name}))
    program.update(json.loads(text))
    _first(program)["name"] = name
    values = _graph(program)["tensor_values"]
    values[name] = values.pop(json.loads(old)["name"])


def _expression(program):
    _value(program)["sizes"][0] = {"as_expr": {"expr_str": CANARY, "hint": None}}


def _symbol(program):
    _graph(program)["sym_int_values"]["s0"] = {"as_expr": {"expr_str": CANARY, "hint": {"as_int": 2}}}
    _graph(program)["nodes"][0]["inputs"].append(
        {"name": "padding_idx", "arg": {"as_sym_int": {"as_name": "s0"}}, "kind": 1}
    )


def _sum_of_symbols(program):
    _value(program)["sizes"][0] = {"as_expr": {"expr_str": "s0**s1**s2 + 9**9**9", "hint": None}}


def _call(program):
    node = _first(program)
    node.update(
        target="torch.sys.audit", inputs=[{"name": "", "arg": {"as_string": CANARY_EVENT}, "kind": 1}], name="audited"
    )


def _operation(target, **values):
    def edit(program):
        node = copy.deepcopy(_first(program))
        node.update(target=target, inputs=[], outputs=[{"as_none": True}], name="more")
        node["inputs"] = [{"name": name, "arg": value, "kind": 1} for name, value in values.items()]
        _graph(program)["nodes"].insert(0, node)

    return edit


def _doubled(times):
    """The first result is put behind itself so many times."""

    def edit(program):
        nodes, values = _graph(program)["nodes"], _graph(program)["tensor_values"]
        name = _first(program)["outputs"][0]["as_tensor"]["name"]
        more, meta = [], values[name]
        for index in range(times):
            tensors = {"as_tensors": [{"name": name}, {"name": name}]}
            name = f"doubled_{index}"
            node = {**copy.deepcopy(_first(program)), "target": "torch.ops.aten.cat.default", "name": name}
            node["inputs"] = [{"name": "tensors", "arg": tensors, "kind": 1}]
            node["outputs"] = [{"as_tensor": {"name": name}}]
            values[name] = meta
            more.append(node)
        nodes[1:1] = more

    return edit


def _set(*path, value):
    def edit(found):
        for key in path[:-1]:
            found = found[key]
        found[path[-1]] = value

    return edit


def _specs(program):
    return program["graph_module"]["signature"]["input_specs"]


def _weight(table):
    return next(iter(table["config"].values()))


def _parameter_called(name):
    def edit(members):
        old = next(iter(json.loads(members[WEIGHTS])["config"]))
        for member in (MODEL, WEIGHTS):
            members[member] = members[member].replace(json.dumps(old).encode(), json.dumps(name).encode())

    return edit


def _pickled_weight(members):
    table = json.loads(members[WEIGHTS])
    _weight(table)["use_pickle"] = True
    members[f"data/weights/{_weight(table)['path_name']}"] = pickled()
    members[WEIGHTS] = json.dumps(table).encode()


def _pickled_constant(path_name, data):
    def edit(members):
        entry = {"path_name": path_name, "is_param": False, "use_pickle": True, "tensor_meta": None}
        members[f"data/constants/{path_name}"] = data
        members[CONSTANTS] = json.dumps({"config": {"constant": entry}}).encode()

    return edit


def _more(name, data):
    def edit(members):
        members[name] = data

    return edit


def _legacy_weights(members):
    members["data/weights/model.pt"] = pickled()


def _empty_weight(members):
    table = json.loads(members[WEIGHTS])
    entry = _weight(table)
    members[f"data/weights/{entry['path_name']}"] = b""
    entry["tensor_meta"]["sizes"] = [{"as_int": 2**20}, {"as_int": 2**20}]
    entry["tensor_meta"]["strides"] = [{"as_int": 2**20}, {"as_int": 1}]
    members[WEIGHTS] = json.dumps(table).encode()


def _expanded_weight(table):
    meta = _weight(table)["tensor_meta"]
    meta["sizes"], meta["strides"] = [{"as_int": 2**20}] * 2, [{"as_int": 0}] * 2


def _text(member, edit):
    def change(members):
        members[member] = edit(members[member])

    return change


def _twice_keyed(data):
    return data.replace(b'"guards_code": []', b'"guards_code": ["1"], "guards_code": []')


# Changes of what the archive holds, by what they are.
CONTENTS = {
    "a size that is evaluated": edited(MODEL)(_expression),
    "a symbol that is evaluated": edited(MODEL)(_symbol),
    "a size that takes for ever to evaluate": edited(MODEL)(_sum_of_symbols),
    "a call of Python": edited(MODEL)(_call),
    "a call of an operator of Python": edited(MODEL)(_operation("_operator.attrgetter", a={"as_string": "x"})),
    "a file that is mapped": edited(MODEL)(
        _operation("torch.ops.aten.from_file.default", filename={"as_string": "made"}, shared={"as_bool": True})
    ),
    "an operation in place": edited(MODEL)(_operation("torch.ops.aten.add_.Tensor")),
    "an operation into a given tensor": edited(MODEL)(_operation("torch.ops.aten.add.out")),
    "an unchecked index": edited(MODEL)(_operation("torch.ops.aten._unsafe_index.Tensor")),
    "an operation of an extension": edited(MODEL)(_operation("#namespace:operation")),
    "an operation of another library": edited(MODEL)(_operation("torch.ops.mine.run.default")),
    "a graph in the graph": edited(MODEL)(
        _operation("torch.ops.higher_order.cond", graph={"as_graph": {"name": "g", "graph": {}}})
    ),
    "a kernel of Triton": edited(MODEL)(_operation("torch.ops.higher_order.triton_kernel_wrapper_functional")),
    "an object of a class": edited(MODEL)(
        _operation("torch.ops.aten.add.Tensor", self={"as_custom_obj": {"name": "o", "class_fqn": "os.system"}})
    ),
    "an operator as an argument": edited(MODEL)(_operation("torch.ops.aten.add.Tensor", o={"as_operator": "torch.os"})),
    "a name that is Python": edited(MODEL)(lambda program: _rename(program, f"x = {CANARY}; y")),
    "a name with a line break": edited(MODEL)(lambda program: _rename(program, f"x\n    {CANARY}\n    y")),
    "a guard": edited(MODEL)(_set("guards_code", value=[CANARY])),
    "a parameter whose name is Python": _parameter_called(f'x", {_CALLED}) + ("'),
    "a parameter in a class": _parameter_called("__class__.forward"),
    "an input whose name is Python": edited(MODEL)(
        lambda program: program["graph_module"]["module_call_graph"][0]["signature"].update(
            forward_arg_names=[f"x={CANARY}"]
        )
    ),
    "a tree of another type": edited(MODEL)(
        lambda program: program["graph_module"]["module_call_graph"][0]["signature"].update(
            in_spec='[1, {"type": "collections.defaultdict", "context": "x", "children_spec": []}]'
        )
    ),
    "a function looked up by name": edited(MODEL)(
        lambda program: _first(program)["metadata"].update(source_fn_stack="x,torch.os.system")
    ),
    "notes of the graph": edited(MODEL)(_set("graph_module", "metadata", value={"custom": "{}"})),
    "a named tuple": edited(MODEL)(
        _set("graph_module", "treespec_namedtuple_fields", value={"os.x": {"field_names": ["a"]}})
    ),
    "a verifier": edited(MODEL)(_set("verifiers", value=["EDGE"])),
    "an input that is an object": edited(MODEL)(
        lambda program: _specs(program).append(
            {"custom_obj": {"arg": {"name": "o", "class_fqn": "c"}, "custom_obj_name": "n"}}
        )
    ),
    "objects among the values": edited(MODEL)(
        _set("graph_module", "graph", "custom_obj_values", value={"o": {"name": "o", "class_fqn": "c"}})
    ),
    "a constant input": edited(MODEL)(
        lambda program: _specs(program).append({"constant_input": {"name": "n", "value": {"as_string": "x"}}})
    ),
    "an output that changes a buffer": edited(MODEL)(
        lambda program: program["graph_module"]["signature"]["output_specs"].append(
            {"buffer_mutation": {"arg": {"name": "x"}, "buffer_name": "y"}}
        )
    ),
    "ten thousand million unbacked symbols": edited(MODEL)(
        _set("range_constraints", value={"u9999999999": {"min_val": 0, "max_val": None}})
    ),
    "another major version": edited(MODEL)(_set("schema_version", value={"major": 9, "minor": 0})),
    "no version": edited(MODEL)(lambda program: program.pop("schema_version")),
    "a key of a newer version": edited(MODEL)(_set("plugins", value=["x"])),
    "a list for an object": _text(MODEL, lambda _: b"[]"),
    "a text for a number": edited(MODEL)(lambda program: _value(program).update(dtype="7")),
    "true for a number": edited(MODEL)(lambda program: _value(program).update(sizes=[{"as_int": True}])),
    "a negative size": edited(MODEL)(lambda program: _value(program).update(sizes=[{"as_int": -1}])),
    "a size of 2^80": edited(MODEL)(lambda program: _value(program).update(sizes=[{"as_int": 2**80}])),
    "a size given twice": edited(MODEL)(
        lambda program: _value(program).update(sizes=[{"as_int": 1, "as_expr": {"expr_str": CANARY}}])
    ),
    "tensors of another device": edited(MODEL)(
        lambda program: _value(program).update(device={"type": "cuda", "index": 0})
    ),
    "sparse tensors": edited(MODEL)(lambda program: _value(program).update(layout=1)),
    "NaN in the graph": _text(MODEL, lambda data: data.replace(b'"as_int": 1}', b'"as_float": NaN}', 1)),
    "a key twice": _text(MODEL, _twice_keyed),
    "a text of a million brackets": _text(MODEL, lambda _: b"[" * 10**6),
    "a number of ten thousand digits": _text(MODEL, lambda data: data.replace(b": 1}", b": " + b"9" * 10**4 + b"}", 1)),
    "bytes that are no text": _text(MODEL, lambda data: b"\xff" + data),
    "a value of 2^60 bytes": edited(MODEL)(_doubled(60)),
    "a tensor of 2^40 from nothing": edited(MODEL)(
        lambda program: _first(program).update(
            target="torch.ops.aten.full.default",
            inputs=[
                {"name": "size", "arg": {"as_ints": [2**20, 2**20]}, "kind": 1},
                {"name": "fill_value", "arg": {"as_float": 1.0}, "kind": 1},
            ],
        )
    ),
    "a name that is nowhere": edited(MODEL)(
        lambda program: _first(program)["inputs"][0]["arg"].update(as_tensor={"name": "nowhere"})
    ),
    "operations of other shapes": edited(MODEL)(
        lambda program: _first(program).update(target="torch.ops.aten.conv2d.default")
    ),
    "a pickled weight": _pickled_weight,
    "a pickled constant": _pickled_constant("tensor_0", pickled()),
    "an object of C++": _pickled_constant("custom_obj_0", pickled()),
    "an opaque object": _pickled_constant("opaque_obj_0", pickle.dumps(PickledCanary())),
    "a pickled example": _more("data/sample_inputs/model.pt", pickled()),
    "weights of the older format": _legacy_weights,
    "constants of the older format": _more("data/constants/model.pt", pickled()),
    "a compiled library": _more("data/aotinductor/model/model.so", b"\x7fELF"),
    "a program for another runtime": _more("data/executorch/model.pte", b"ET12"),
    "a second program": lambda members: members.update({"models/other.json": members[MODEL]}),
    "a further file": _more("extra/notes.txt", b"notes"),
    "a member that no tensor is in": _more("data/weights/weight_999", b"\0" * 64),
    "a weight with no bytes and 2^40 numbers": _empty_weight,
    "a weight that is expanded": edited(WEIGHTS)(_expanded_weight),
    "a weight beyond its bytes": edited(WEIGHTS)(
        lambda table: _weight(table)["tensor_meta"].update(storage_offset={"as_int": 2**30})
    ),
    "a weight whose size is evaluated": edited(WEIGHTS)(
        lambda table: _weight(table)["tensor_meta"].update(sizes=[{"as_expr": {"expr_str": CANARY, "hint": None}}])
    ),
    "a weight elsewhere": edited(WEIGHTS)(lambda table: _weight(table).update(path_name="../../weight_0")),
    "a weight that is not there": edited(WEIGHTS)(lambda table: _weight(table).update(path_name="weight_9999")),
    "another kind of archive": _more("archive_format", b"pt3"),
    "another version of the archive": _more("archive_version", b"1"),
    "no table of weights": lambda members: members.pop(WEIGHTS),
}


def _zip(out, entries, **options):
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in entries:
            archive.writestr(zipfile.ZipInfo(name), data, **options)


def _entries(source):
    return [(f"image/{name}", data) for name, data in read_pt2(source).items()]


def _evil(source):
    members = read_pt2(source)
    CONTENTS["a size that is evaluated"](members)
    return members[MODEL]


def _hidden(name):
    """The evil program under a name, behind the sound one: of two names that match, PyTorch reads the last."""

    def make(source, out):
        _zip(out, [*_entries(source), (name, _evil(source))])

    return make


def _with(change):
    """Change the bytes of a sound file."""

    def make(source, out):
        Path(out).write_bytes(change(bytearray(Path(source).read_bytes())))

    return make


def _replaced(data, place, value):
    data[place : place + len(value)] = value
    return data


def _central(data):
    """Where the list of members begins."""
    return struct.unpack_from("<I", data, len(data) - 6)[0]


def _old_format(source, out):
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("version", "8.20")
        archive.writestr("serialized_exported_program.json", read_pt2(source)[MODEL])
        for name in ("state_dict", "constants", "example_inputs"):
            archive.writestr(f"serialized_{name}.pt", pickled())


def _renamed_locally(data):
    return _replaced(data, data.index(b"/models/"), b"/MODELS/")


# Archives that readers of zips see different things in, by what they are; each makes a file of a sound one.
ARCHIVES = {
    "a name twice": _hidden(f"image/{MODEL}"),
    "a name twice in other letters": _hidden("image/Models/model.json"),
    "a name with a dot in front": _hidden("./image/models/model.json"),
    "a name with a doubled slash": _hidden("image//models/model.json"),
    "a name with backslashes": _hidden("image\\models\\model.json"),
    "a second root": _hidden("other/models/model.json"),
    "a name that leaves the folder": _hidden("../models/model.json"),
    "an absolute name": _hidden("/models/model.json"),
    "a folder as a member": _hidden("image/models/"),
    "no root": lambda source, out: _zip(out, list(read_pt2(source).items())),
    "something in front": _with(lambda data: b"#!/bin/sh\n" + data),
    "something behind": _with(lambda data: data + b"\0" * 64),
    "another archive behind": lambda source, out: Path(out).write_bytes(2 * Path(source).read_bytes()),
    "a comment with an end in it": _with(lambda data: _replaced(data, len(data) - 2, b"\x16\0") + data[-22:]),
    "another name in its own header": _with(_renamed_locally),
    "another number of members": _with(lambda data: _replaced(data, len(data) - 12, b"\1\0")),
    "another start of the list": _with(lambda data: _replaced(data, len(data) - 6, b"\0\0\0\0")),
    "a longer end that says something else": _with(lambda data: _replaced(data, len(data) - 98 + 48, b"\0" * 8)),
    "another size in the list": _with(lambda data: _replaced(data, _central(data) + 24, b"\1\0\0\0")),
    "another place in the list": _with(lambda data: _replaced(data, _central(data) + 42, b"\1\0\0\0")),
    "an encrypted member": _with(lambda data: _replaced(data, _central(data) + 8, b"\x09\x08")),
    "a compressed member": lambda source, out: _zip(out, _entries(source), compress_type=zipfile.ZIP_DEFLATED),
    "half a file": _with(lambda data: data[: len(data) // 2]),
    "an empty file": _with(lambda _: b""),
    "no archive": _with(lambda _: b"not an archive" * 100),
    "an archive of nothing": lambda _, out: _zip(out, []),
    "the older format, of pickles": _old_format,
}


def make(name, source, out):
    """Write one of the hostile files, made of a sound one."""
    if name in ARCHIVES:
        ARCHIVES[name](source, out)
        return
    members = read_pt2(source)
    CONTENTS[name](members)
    write_pt2(out, members)
