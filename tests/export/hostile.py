"""Exported programs that run something when PyTorch reads them: each is made of a sound one by one change."""

import json
import pickle
import zipfile

import torch

from tests.build.canary import CANARY, PickledCanary
from tests.build.torch_files import torch_bytes

MODEL = "models/model.json"
# The evil program under a name, behind the sound one: of two names that match, PyTorch reads the last.
HIDDEN = {"a name twice": f"image/{MODEL}", "a name twice in other letters": "image/Models/model.json"}
PROGRAMS = (
    *("a size that is evaluated", "a pickled weight", "a pickled constant", "an opaque object", "a pickled example"),
    *("weights of the older format", *HIDDEN),
)


def changes(sound):
    """Return, by what they are, the members of the archive that differ from those of a sound program."""
    pickled, program = torch_bytes(PickledCanary()), json.loads(sound[MODEL])
    value = next(iter(program["graph_module"]["graph"]["tensor_values"].values()))
    value["sizes"][0] = {"as_expr": {"expr_str": CANARY, "hint": None}}
    weights = json.loads(sound["data/weights/model_weights_config.json"])
    weight = next(iter(weights["config"].values()))
    weight["use_pickle"] = True

    def constant(name, data):
        entry = {"path_name": name, "is_param": False, "use_pickle": True, "tensor_meta": None}
        table = json.dumps({"config": {"constant": entry}}).encode()
        return {f"data/constants/{name}": data, "data/constants/model_constants_config.json": table}

    table = {"data/weights/model_weights_config.json": json.dumps(weights).encode()}
    return {
        "a size that is evaluated": {MODEL: json.dumps(program).encode()},
        "a pickled weight": {f"data/weights/{weight['path_name']}": pickled, **table},
        "a pickled constant": constant("tensor_0", pickled),
        "an opaque object": constant("opaque_obj_0", pickle.dumps(PickledCanary())),
        "a pickled example": {"data/sample_inputs/model.pt": pickled},
        "weights of the older format": {"data/weights/model.pt": pickled},
    }


def make(name, source, out):
    """Write one of the hostile files, made of a sound one."""
    with zipfile.ZipFile(source) as archive:
        members = {member.partition("/")[2]: archive.read(member) for member in archive.namelist()}
    made = changes(members)
    if name in HIDDEN:
        evil = {HIDDEN[name]: made["a size that is evaluated"][MODEL]}
        with zipfile.ZipFile(out, "w") as archive:
            for member, data in [*((f"image/{one}", data) for one, data in members.items()), *evil.items()]:
                archive.writestr(zipfile.ZipInfo(member), data)
        return
    writer = torch._C.PyTorchFileWriter(str(out))
    writer.set_min_version(6)
    for member, data in (members | made[name]).items():
        if not member.startswith(".data/") and member != "byteorder":  # what PyTorch writes by itself
            writer.write_record(member, data, len(data))
    writer.write_end_of_file()
