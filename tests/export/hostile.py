"""Exported programs that run something when PyTorch reads them: each is made of a sound one by one change."""

import io
import json
import pickle
import zipfile

import torch

from tests.build.canary import CANARY, PickledCanary

MODEL = "models/model.json"
WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
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


def _expression(members):
    program = json.loads(members[MODEL])
    value = next(iter(program["graph_module"]["graph"]["tensor_values"].values()))
    value["sizes"][0] = {"as_expr": {"expr_str": CANARY, "hint": None}}
    members[MODEL] = json.dumps(program).encode()


def _pickled_weight(members):
    table = json.loads(members[WEIGHTS])
    weight = next(iter(table["config"].values()))
    weight["use_pickle"] = True
    members[f"data/weights/{weight['path_name']}"] = pickled()
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


# Changes of what the archive holds, by what they are.
CONTENTS = {
    "a size that is evaluated": _expression,
    "a pickled weight": _pickled_weight,
    "a pickled constant": _pickled_constant("tensor_0", pickled()),
    "an opaque object": _pickled_constant("opaque_obj_0", pickle.dumps(PickledCanary())),
    "a pickled example": _more("data/sample_inputs/model.pt", pickled()),
    "weights of the older format": _more("data/weights/model.pt", pickled()),
}
# The evil program under a name, behind the sound one: of two names that match, PyTorch reads the last.
HIDDEN = {"a name twice": f"image/{MODEL}", "a name twice in other letters": "image/Models/model.json"}
PROGRAMS = (*CONTENTS, *HIDDEN)


def make(name, source, out):
    """Write one of the hostile files, made of a sound one, which may be the same file."""
    members = read_pt2(source)
    if name in CONTENTS:
        CONTENTS[name](members)
        write_pt2(out, members)
        return
    evil = dict(members)
    _expression(evil)
    with zipfile.ZipFile(out, "w") as archive:
        for member, data in members.items():
            archive.writestr(zipfile.ZipInfo(f"image/{member}"), data)
        archive.writestr(zipfile.ZipInfo(HIDDEN[name]), evil[MODEL])
