"""Exports that want more than to be measured: each is a copy of a sound one with one change."""

import hashlib
import json
import os
import shutil

import numpy as np
import onnx
import torch
from safetensors.torch import load_file, save_file

HUGE = 2**40


def sign(folder):
    """Write the hashes of the files as they are now into the contract, as a stranger would."""
    path = folder / "mobileclip.json"
    contract = json.loads(path.read_text())
    there = {name for name in contract["files"] if (folder / name).is_file()}
    contract["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sorted(there)}
    path.write_text(json.dumps(contract))


def negate(folder, name):
    """Turn the largest weight of an ONNX file around, and sign it: it runs, has the right shapes, and ranks wrongly."""
    found = onnx.load(folder / name)
    weight = _weight(found)
    weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(found, folder / name)
    sign(folder)


def contract(edit):
    """Change the contract."""

    def change(folder):
        path = folder / "mobileclip.json"
        found = json.loads(path.read_text())
        edit(found)
        path.write_text(json.dumps(found))

    return change


def text(name, edit):
    """Change a file's text, and sign it."""

    def change(folder):
        (folder / name).write_text(edit((folder / name).read_text()))
        if name != "mobileclip.json":
            sign(folder)

    return change


def stored(edit):
    """Change the stored inputs and embeddings, and sign them."""

    def change(folder):
        tensors = load_file(folder / "evaluation.safetensors")
        edit(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "evaluation.safetensors")
        sign(folder)

    return change


def named(name):
    """Let the contract name a file that is there, under another name."""
    return contract(lambda found: found["files"].update({name: "0" * 64}))


def _replaced(old, new):
    return lambda text: text.replace(old, new)


def _tower(found):
    return found["towers"][0]


def _linked(target):
    def change(folder):
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.json").symlink_to(target)

    return change


def _copied_beside(folder):
    shutil.move(folder / "tokenizer.json", folder.parent / "elsewhere.json")
    (folder / "tokenizer.json").symlink_to(folder.parent / "elsewhere.json")


def _pipe(folder):
    (folder / "mobileclip.json").unlink()
    os.mkfifo(folder / "mobileclip.json")


def _large(folder):
    with (folder / "mobileclip.json").open("wb") as stream:
        stream.truncate(2**36)


def _header(folder):
    data = bytearray((folder / "evaluation.safetensors").read_bytes())
    data[:8] = (2**60).to_bytes(8, "little")
    (folder / "evaluation.safetensors").write_bytes(data)
    sign(folder)


# Of any target; the text tower is the first and only one.
FOLDERS = {
    "a file above the folder": named("../text.onnx"),
    "an absolute file": named("/etc/passwd"),
    "a file on a drive": named("C:secret"),
    "a file with backslashes": named("..\\..\\text.onnx"),
    "a file with a line break": named("text\n.onnx"),
    "a file with no name": named(""),
    "a file called dot": named("."),
    "a name of ten thousand letters": named("x" * 10_000),
    "a link out of the folder": _copied_beside,
    "a link to what never ends": _linked("/dev/zero"),
    "a link to nowhere": _linked("/nowhere"),
    "a contract that is a pipe": _pipe,
    "a contract of 64 GiB": _large,
    "no towers": contract(lambda found: found.update(towers=[])),
    "a tower twice": contract(lambda found: found.update(towers=2 * found["towers"])),
    "a tower that is the tokenizer": contract(lambda found: _tower(found).update(file="tokenizer.json")),
    "a tower elsewhere": contract(lambda found: _tower(found).update(file="../text.onnx")),
    "a batch of -5": contract(lambda found: _tower(found).update(input_shape=[-5, 12])),
    "a batch of 2^60": contract(lambda found: _tower(found).update(input_shape=[2**60, 12])),
    "no shape": contract(lambda found: _tower(found).update(input_shape=[])),
    "another shape": contract(lambda found: _tower(found).update(input_shape=[1, 13])),
    "another type": contract(lambda found: _tower(found).update(input_dtype="float32")),
    "another tower": contract(lambda found: _tower(found).update(tower="image")),
    "embeddings of 2^60 dimensions": contract(lambda found: found.update(embedding_dim=2**60)),
    "embeddings of -1 dimensions": contract(lambda found: found.update(embedding_dim=-1)),
    "a logit scale of infinity": text(
        "mobileclip.json", lambda old: old.replace('"logit_scale": ', '"logit_scale": 1e999')
    ),
    "a logit scale of NaN": text(
        "mobileclip.json", lambda old: old.replace('"logit_scale": ', '"logit_scale": NaN, "x": ')
    ),
    "a format version of true": contract(lambda found: found.update(format_version=True)),
    "a target of markup": contract(lambda found: found.update(target="x[/nothing]\x1b[2J")),
    "a version of ten thousand digits": contract(lambda found: found["versions"].update(onnx="9" * 10_000 + ".1")),
    "files as a list": contract(lambda found: found.update(files=["text.onnx"])),
    "a million brackets": text("mobileclip.json", lambda _: "[" * 10**6),
    "a contract with a key twice": text("mobileclip.json", lambda old: old.replace("{", '{"target": "torch",', 1)),
    "a report that is none": text("report.json", lambda _: "[]"),
    "a report of infinite numbers": text("report.json", _replaced('"count": ', '"count": 1e999')),
    "a report of a million brackets": text("report.json", lambda _: "[" * 10**6),
    "inputs of another type": stored(lambda tensors: tensors.update({"text.input": tensors["text.input"].double()})),
    "inputs that are no ids": stored(lambda tensors: tensors["text.input"].fill_(10**9)),
    "inputs below zero": stored(lambda tensors: tensors["text.input"].fill_(-1)),
    "inputs of another length": stored(
        lambda tensors: tensors.update({"text.input": tensors["text.input"][:, :5].clone()})
    ),
    "one input": stored(
        lambda tensors: tensors.update({name: tensors[name][:1].clone() for name in tensors if name.startswith("text")})
    ),
    "no inputs": stored(
        lambda tensors: tensors.update({name: tensors[name][:0].clone() for name in tensors if name.startswith("text")})
    ),
    "embeddings of NaN": stored(lambda tensors: tensors["text.embedding"].fill_(torch.nan)),
    "embeddings that are all the same": stored(lambda tensors: tensors["text.embedding"].fill_(1.0)),
    "embeddings of another width": stored(
        lambda tensors: tensors.update({"text.embedding": tensors["text.embedding"][:, :3].clone()})
    ),
    "embeddings as scalars": stored(lambda tensors: tensors.update({"text.embedding": torch.tensor(1.0)})),
    "a header of 2^60 bytes": _header,
}


def model(edit):
    """Change an ONNX model, and sign it."""

    def change(folder):
        found = onnx.load(folder / "text.onnx")
        edit(found)
        (folder / "text.onnx").write_bytes(found.SerializeToString())
        sign(folder)

    return change


def _weight(found):
    return max(found.graph.initializer, key=lambda tensor: len(tensor.raw_data))


def _external(location):
    def edit(found):
        tensor = _weight(found)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return edit


def _node(kind, *, domain="", inputs=(), **attributes):
    """An operation between the last value and the output."""

    def edit(found):
        last = next(node for node in found.graph.node if found.graph.output[0].name in node.output)
        last.output[list(last.output).index(found.graph.output[0].name)] = "before"
        outputs = [found.graph.output[0].name]
        found.graph.node.append(onnx.helper.make_node(kind, ["before", *inputs], outputs, domain=domain, **attributes))
        if domain:
            found.opset_import.add(domain=domain, version=1)

    return edit


def _constant(found, name, values):
    found.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, dtype=np.int64), name))


def _tiled(found):
    _constant(found, "times", [2**30, 2**10])
    _node("Tile", inputs=["times"])(found)


def _expanded(found):
    _constant(found, "shape", [2**20, 2**20, 1, 12])
    _node("Expand", inputs=["shape"])(found)


def _doubled(found):
    last = next(node for node in found.graph.node if found.graph.output[0].name in node.output)
    last.output[list(last.output).index(found.graph.output[0].name)] = "doubled_0"
    for index in range(50):
        names = [f"doubled_{index}"] * 2
        found.graph.node.append(onnx.helper.make_node("Concat", names, [f"doubled_{index + 1}"], axis=0))
    found.graph.node.append(onnx.helper.make_node("Identity", ["doubled_50"], [found.graph.output[0].name]))


def _loop(found):
    body = onnx.helper.make_graph([], "body", [], [])
    _node("Loop", body=body)(found)


def _cut(found):
    _weight(found).raw_data = _weight(found).raw_data[:64]


def _function(found):
    found.functions.append(onnx.helper.make_function("mine", "f", ["x"], ["x"], [], [onnx.helper.make_opsetid("", 20)]))


ONNX = {
    "weights above the folder": model(_external("../../weights")),
    "weights in an absolute file": model(_external("/etc/passwd")),
    "weights in a file beside it": model(_external("weights")),
    "an operation of another domain": model(_node("Run", domain="com.stranger")),
    "a loop": model(_loop),
    "a function": model(_function),
    "a random value": model(_node("RandomNormalLike")),
    "an operation of a version to come": model(lambda found: setattr(found.opset_import[0], "version", 9999)),
    "a value of 2^43 numbers": model(_tiled),
    "a value of 2^42 numbers by expansion": model(_expanded),
    "a value that is doubled 50 times": model(_doubled),
    "a weight of 2^40 numbers": model(lambda found: _weight(found).dims.__setitem__(0, HUGE)),
    "a weight of a negative size": model(lambda found: _weight(found).dims.__setitem__(0, -1)),
    "a weight of an unknown type": model(lambda found: setattr(_weight(found), "data_type", 99)),
    "a weight with half its bytes": model(
        lambda found: setattr(_weight(found), "raw_data", _weight(found).raw_data[:64])
    ),
    "another input": model(lambda found: setattr(found.graph.input[0], "name", "x")),
    "no graph": lambda folder: ((folder / "text.onnx").write_bytes(b""), sign(folder)),
    "bytes that are no model": lambda folder: ((folder / "text.onnx").write_bytes(b"\xff" * 1000), sign(folder)),
    "a file beside the tower": lambda folder: (folder / "text.onnx.data").write_bytes(b"x"),
}
