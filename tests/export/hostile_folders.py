"""Exports whose files are others than those that were written, signed as a stranger would."""

import hashlib
import json

import onnx


def sign(folder):
    """Write the hashes of the files as they are now into the contract."""
    path = folder / "mobileclip.json"
    contract = json.loads(path.read_text())
    there = {name for name in contract["files"] if (folder / name).is_file()}
    contract["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sorted(there)}
    path.write_text(json.dumps(contract))


def negate(folder, name):
    """Turn the largest weight of an ONNX file around, and sign it: it runs, has the right shapes, and ranks wrongly."""
    found = onnx.load(folder / name)
    weight = max(found.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(found, folder / name)
    sign(folder)
