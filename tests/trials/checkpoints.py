"""Files of weights from strangers: specs that ask for the world, tensors of every kind, broken archives."""

from __future__ import annotations

import gc
import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from mobileclip.encoders import load_model, save_model
from mobileclip.encoders.checkpoints import FORMS, read_checkpoint, tensor_shapes
from tests.encoders.small import SMALL, randomised
from tests.trials.harness import CANARY, Case, Outcome, PickledCanary, run_command

WEIGHT = "image_encoder.stages.0.blocks.0.ffn.fc1.weight"
LENGTH = struct.Struct("<Q")
MAGIC = 0x1950A86A20F9469CFC6C

State = dict[Any, Any]


@cache
def model() -> nn.Module:
    """The model that all files here hold, or nearly."""
    return randomised(SMALL)


@cache
def own_file() -> bytes:
    """A small checkpoint in our own layout."""
    with TemporaryDirectory() as folder:
        save_model(model(), Path(folder) / "m.safetensors")
        return (Path(folder) / "m.safetensors").read_bytes()


@cache
def official_state() -> State:
    """The tensors of the same model under the names of the official layout."""
    with TemporaryDirectory() as folder:
        save_model(model(), Path(folder) / "m.pt", layout="official")
        return dict(torch.load(Path(folder) / "m.pt", weights_only=True))


def parts() -> tuple[dict[str, Any], bytes]:
    """The header of the small checkpoint, and the numbers behind it."""
    data = own_file()
    (length,) = LENGTH.unpack(data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def refused(path: Path) -> Outcome:
    """Load a file; that it was is wrong."""
    load_model(path, SMALL if path.suffix == ".pt" else None)
    raise AssertionError(f"{path} was loaded")


def accepted(path: Path) -> Outcome:
    """Load a file that holds the small model, whatever it looks like."""
    expected = model().state_dict()
    found = read_checkpoint(path, SMALL).build().state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-2, atol=2e-2)
    return "accepted"


def with_header(folder: Path, edit: Callable[[dict[str, Any]], Any], then: Callable[[Path], Outcome]) -> Outcome:
    """Change the header of a safetensors file; an edit may return a text in its place."""
    header, numbers = parts()
    changed = edit(header)
    text = changed if isinstance(changed, bytes) else json.dumps(header).encode()
    path = folder / "m.safetensors"
    path.write_bytes(LENGTH.pack(len(text)) + text + numbers)
    return then(path)


def spec_with(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    """Put other JSON into the spec."""

    def edit(header: dict[str, Any]) -> None:
        spec = header["__metadata__"]["mobileclip.spec"]
        assert old in spec, spec
        header["__metadata__"]["mobileclip.spec"] = spec.replace(old, new, 1)

    return edit


def metadata_with(**values: Any) -> Callable[[dict[str, Any]], None]:
    def edit(header: dict[str, Any]) -> None:
        header["__metadata__"] |= {f"mobileclip.{name}": value for name, value in values.items()}

    return edit


SPECS = {
    "depth of a billion": ('"depth": 2', '"depth": 1000000000'),
    "depth of 4096 in a small file": ('"depth": 2', '"depth": 4096'),
    "depth as a text": ('"depth": 2', '"depth": "2"'),
    "depth of one and a half": ('"depth": 2', '"depth": 1.5'),
    "depth of two and no more": ('"depth": 2', '"depth": 2.0'),
    "depth that is true": ('"depth": 2', '"depth": true'),
    "depth that is null": ('"depth": 2', '"depth": null'),
    "depth that is a list": ('"depth": 2', '"depth": [2]'),
    "depth below zero": ('"depth": 2', '"depth": -2'),
    "depth of 400 digits": ('"depth": 2', f'"depth": {"9" * 400}'),
    "depth of a million digits": ('"depth": 2', f'"depth": {"9" * 1_000_000}'),
    "depth twice": ('"depth": 2', '"depth": 2, "depth": 3'),
    "width of 2^40": ('"width": 32', f'"width": {2**40}'),
    "width of 2^62": ('"width": 32', f'"width": {2**62}'),
    "dim of 2^40": ('"dim": 16', f'"dim": {2**40}'),
    "stage of 65536 channels": ('"dim": 64', '"dim": 65536'),
    "vocabulary of 2^40": ('"vocab_size": 600', f'"vocab_size": {2**40}'),
    "vocabulary of four million": ('"vocab_size": 600', '"vocab_size": 4000000'),
    "context of 2^40": ('"context_length": 12', f'"context_length": {2**40}'),
    "padding outside of the vocabulary": ('"pad_id": 0', '"pad_id": 601'),
    "image of 2^40 pixels": ('"size": 64', f'"size": {2**40}'),
    "kernel of a billion": ('"kernel_size": 3', '"kernel_size": 1000000001'),
    "even kernel": ('"kernel_size": 3', '"kernel_size": 4'),
    "no heads": ('"num_heads": 2', '"num_heads": 0'),
    "heads that do not divide": ('"num_heads": 2', '"num_heads": 7'),
    "heads of seven channels": ('"head_dim": 32', '"head_dim": 7'),
    "hidden layers of nothing": ('"ffn_ratio": 3.0', '"ffn_ratio": 1e-9'),
    "hidden layers of 1e300": ('"ffn_ratio": 3.0', '"ffn_ratio": 1e300'),
    "mean of infinity": ('"mean": [0.0', '"mean": [Infinity'),
    "mean of NaN": ('"mean": [0.0', '"mean": [NaN'),
    "mean of 1e999": ('"mean": [0.0', '"mean": [1e999'),
    "mean of two numbers": ('"mean": [0.0, ', '"mean": ['),
    "mean that is a text": ('"mean": [0.0, 0.0, 0.0]', '"mean": "000"'),
    "deviation of zero": ('"std": [1.0', '"std": [0.0'),
    "deviation of 1e-300": ('"std": [1.0', '"std": [1e-300'),
    "layer scale of NaN": ('"layer_scale": 1e-05', '"layer_scale": NaN'),
    "another resize": ('"bilinear"', '"nearest"'),
    "a thousand stages": ('"stages": [', '"stages": [' + '{"dim": 16, "depth": 1},' * 1000),
    "no stages": ('"stages": [', '"stages": [], "other": ['),
    "unknown kind of encoder": ('"kind": "mci"', '"kind": "mcii"'),
    "kind that is a list": ('"kind": "mci"', '"kind": ["mci"]'),
    "kind of a megabyte": ('"kind": "mci"', f'"kind": "{"m" * 1_000_000}"'),
    "unknown key": ('"depth": 2', '"depth": 2, "deph": 2'),
    "unknown key of a megabyte": ('"depth": 2', f'"depth": 2, "{"d" * 1_000_000}": 2'),
    "spec of a hundred thousand brackets": ('"depth": 2', f'"depth": {"[" * 100_000}{"]" * 100_000}'),
}

HEADERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "spec that is no JSON": metadata_with(spec="{"),
    "spec that is a number": metadata_with(spec="7"),
    "spec without a kind": metadata_with(kind=""),
    "kind of a future version": metadata_with(kind="triple_encoder"),
    "kind with a line break and escapes": metadata_with(kind="dual\n\x1b[31m"),
    "form of a future version": metadata_with(form="half_folded"),
    "form that its tensors are not in": metadata_with(form="folded"),
    "layout of a future version": metadata_with(layout="keras\n\x1b[31m"),
    "layout that its tensors are not in": metadata_with(layout="open_clip"),
    "layout that has no place for its text tower": metadata_with(layout="timm"),
    "metadata that holds a number": metadata_with(form=7),
    "metadata that is a list": lambda header: header.update(__metadata__=[1]),
    "header that is no JSON": lambda _: b"{" * 40,
    "header that is a list": lambda _: b"[1, 2]",
    "header of a million brackets": lambda _: b'{"a":' * 200_000,
    "header in another encoding": lambda _: b'{"\xff": 1}',
    "tensor twice": lambda header: (
        json.dumps(header)[:-1].encode() + f', "logit_scale": {json.dumps(header["logit_scale"])}}}'.encode()
    ),
    "offsets that overlap": lambda header: header[WEIGHT].update(data_offsets=[0, 4]),
    "offsets behind the end": lambda header: header[WEIGHT].update(data_offsets=[2**40, 2**41]),
    "offsets backwards": lambda header: header[WEIGHT].update(data_offsets=[100, 4]),
    "offsets that are texts": lambda header: header[WEIGHT].update(data_offsets=["0", "4"]),
    "shape below zero": lambda header: header[WEIGHT].update(shape=[-1, 4]),
    "shape of 2^63 numbers": lambda header: header[WEIGHT].update(shape=[2**33, 2**33]),
    "shape of other numbers": lambda header: header[WEIGHT].update(shape=[1]),
    "tensor that is a number": lambda header: header.update({WEIGHT: 3}),
    "tensor without a type": lambda header: header[WEIGHT].pop("dtype"),
    "type of a future version": lambda header: header[WEIGHT].update(dtype="F4"),
    "type that is a list": lambda header: header[WEIGHT].update(dtype=["F32"]),
    "whole numbers in place of weights": lambda header: header[WEIGHT].update(dtype="I32"),
    "tensor missing": lambda header: header.pop(WEIGHT),
    "name of a megabyte": lambda header: header.update({"n" * 1_000_000: header.pop(WEIGHT)}),
    "seventy thousand empty tensors": lambda header: header.update(
        {f"empty{index}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for index in range(70_000)}
    ),
}


def quantized() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.zeros(48, 16, 1, 1), 0.1, 0, torch.qint8)


def changed(name: str, value: Callable[[torch.Tensor], Any]) -> Callable[[State], State]:
    return lambda state: {**state, name: value(state[name])}


OFFICIAL = "image_encoder.model.network.0.0.convffn.fc1.weight"
TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "int64": lambda tensor: tensor.long(),
    "int32": lambda tensor: tensor.int(),
    "bool": lambda tensor: tensor > 0,
    "uint8": lambda tensor: tensor.byte(),
    "float8 e4m3": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "float8 e5m2": lambda tensor: tensor.to(torch.float8_e5m2),
    "uint16": lambda tensor: tensor.abs().to(torch.uint16),
    "complex64": lambda tensor: tensor.to(torch.complex64),
    "complex128": lambda tensor: tensor.to(torch.complex128),
    "quantized": lambda _: quantized(),
    "sparse": lambda tensor: tensor.flatten(1).to_sparse(),
    "sparse in rows": lambda tensor: tensor.flatten(1).to_sparse_csr(),
    "nested": lambda _: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "meta": lambda tensor: tensor.to("meta"),
    "expanded": lambda tensor: torch.zeros(1).expand(tensor.shape),
    "expanded to a terabyte": lambda _: torch.zeros(1, dtype=torch.uint8).expand(2**40),
    "overlapping": lambda _: torch.zeros(100).as_strided((90, 90), (0, 1)),
    "of another shape": lambda tensor: tensor[:1].clone(),
    "without dimensions": lambda _: torch.tensor(1.0),
    "empty": lambda _: torch.zeros(0),
    "NaN": lambda tensor: tensor * torch.nan,
    "infinite": lambda tensor: torch.full_like(tensor, torch.inf),
    "beyond float32": lambda tensor: torch.full_like(tensor, 1e300, dtype=torch.float64),
    "None": lambda _: None,
    "a number": lambda _: 3.0,
    "a list": lambda tensor: tensor.flatten().tolist(),
    "a NumPy array": lambda tensor: tensor.numpy(),
    "a module": lambda _: nn.Linear(2, 2),
    "an object that runs code": lambda _: PickledCanary(),
}
STATES: dict[str, Callable[[State], Any]] = {
    "keys that are numbers": lambda state: dict(enumerate(state.values())),
    "keys that are tuples": lambda state: {(name, 1): value for name, value in state.items()},
    "keys that are bytes": lambda state: {name.encode(): value for name, value in state.items()},
    "no tensors": lambda _: {},
    "a list": lambda state: list(state.values()),
    "a tensor alone": lambda state: state[OFFICIAL],
    "a text": lambda _: "weights",
    "a whole model": lambda _: model(),
    "state_dict that is a list": lambda state: {"state_dict": list(state)},
    "code beside the weights": lambda state: {"state_dict": state, "args": PickledCanary()},
    "names that differ in the prefix alone": lambda state: {**state, f"module.{OFFICIAL}": state[OFFICIAL]},
    "an unknown layout": lambda state: {f"other.{name}": value for name, value in state.items()},
    "half of the tensors": lambda state: dict(list(state.items())[::2]),
    "names of a megabyte": lambda state: {**state, "n" * 1_000_000: torch.zeros(1)},
    "names with control characters": lambda state: {**state, "\x1b[2J\r\n": torch.zeros(1)},
    "seventy thousand tensors": lambda state: {**state, **{f"t{index}": state[OFFICIAL] for index in range(70_000)}},
}
FINE: dict[str, Callable[[State], Any]] = {
    "as it is": lambda state: state,
    "as an ordered dictionary": OrderedDict,
    "below state_dict": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"state": {}, "groups": [[1.5]]}},
    "state_dict in a state_dict": lambda state: {"state_dict": {"state_dict": state}},
    "with the prefix of distributed training": lambda state: {f"module.{name}": value for name, value in state.items()},
    "as parameters": lambda state: {
        name: nn.Parameter(value) if value.is_floating_point() else value for name, value in state.items()
    },
    "in half precision": lambda state: {
        name: value.half() if value.is_floating_point() else value for name, value in state.items()
    },
    "in bfloat16": lambda state: {
        name: value.bfloat16() if value.is_floating_point() else value for name, value in state.items()
    },
    "in double precision": lambda state: {
        name: value.double() if value.is_floating_point() else value for name, value in state.items()
    },
    "turned in memory": changed("text_encoder.projection_layer", lambda tensor: tensor.T.contiguous().T),
    "as a part of a larger tensor": changed(OFFICIAL, lambda tensor: torch.cat([tensor, tensor])[: len(tensor)]),
}


def saved(folder: Path, make: Callable[[State], Any], then: Callable[[Path], Outcome], *, stream: bool) -> Outcome:
    """Write what is made of the official file as torch does, in its archive or in its older stream."""
    path = folder / "m.pt"
    torch.save(make(official_state()), path, _use_new_zipfile_serialization=not stream)
    return then(path)


def written(folder: Path, data: Callable[[], bytes], then: Callable[[Path], Outcome] = refused) -> Outcome:
    path = folder / "m.pt"
    path.write_bytes(data())
    return then(path)


def as_archive(pickled: bytes, **files: bytes) -> bytes:
    """An archive such as torch writes, with a pickle of our own."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {"data.pkl": pickled, "version": b"3\n", "data/0": bytes(64), **files}.items():
            archive.writestr(f"m/{name}", content)
    return buffer.getvalue()


def archive(make: Callable[[State], Any] = lambda state: state) -> bytes:
    buffer = io.BytesIO()
    torch.save(make(official_state()), buffer)
    return buffer.getvalue()


def repacked(method: int = zipfile.ZIP_STORED, twice: str = "", folders: bool = False) -> bytes:
    """The official file in an archive of another kind."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive())) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for info in old.infolist():
            name = f"b{info.filename}" if folders and info.filename.endswith("version") else info.filename
            new.writestr(name, old.read(info), method)
            if twice and info.filename.endswith(twice):
                new.writestr(name, old.read(info), method)
    return buffer.getvalue()


def bomb() -> bytes:
    """A description of 128 MB that takes an eighth of one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new, new.open("m/data.pkl", "w") as member:
        for _ in range(8):
            member.write(bytes(1 << 24))
    return buffer.getvalue()


def edited(old: bytes, new: bytes) -> bytes:
    data = archive()
    assert old in data
    return data.replace(old, new)


def with_directory_of(size: int) -> bytes:
    data = bytearray(archive())
    place = data.rindex(b"PK\x05\x06")
    data[place + 12 : place + 16] = struct.pack("<I", size)
    return bytes(data)


def overlapping() -> bytes:
    """An archive whose second file lies within its first."""
    inner = as_archive(b"\x80\x02}.")
    data = bytearray(inner)
    places = [place for place in range(len(data)) if data[place : place + 4] == b"PK\x01\x02"]
    data[places[1] + 42 : places[1] + 46] = data[places[0] + 42 : places[0] + 46]
    return bytes(data)


def tensor_pickle(arguments: bytes, *, storage: bytes = b"ctorch\nFloatStorage\n", count: bytes = b"K\x10") -> bytes:
    """A pickle of one tensor with arguments of our own."""
    identity = b"(X\x07\x00\x00\x00storage" + storage + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + count + b"tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + arguments + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}X\x01\x00\x00\x00a" + call + b"s."


def laughs() -> bytes:
    """A tuple of tuples of tuples whose hash takes for ever, as a key."""
    return b"\x80\x02}" + b")" + b"2\x86" * 0 + b"".join(b"q\x00h\x00h\x00\x86" for _ in range(200)) + b"K\x01s."


PICKLES = {
    "brackets": b"\x80\x02" + b"]" * 500_000 + b".",
    "dictionaries in dictionaries": b"\x80\x02" + b"}X\x01\x00\x00\x00a" * 200_000 + b"}" + b"s" * 200_000 + b".",
    "tuples in tuples": b"\x80\x02" + b")" + b"\x85" * 500_000 + b".",
    "a key that hashes for ever": laughs(),
    "a place in memory of two thousand million": b"\x80\x02}r\xff\xff\xff\x7f.",
    "a number of two gigabytes": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "a text of four gigabytes": b"\x80\x02X\xff\xff\xff\xff.",
    "an empty stack": b"\x80\x02.",
    "a missing mark": b"\x80\x02t.",
    "a call of a number": b"\x80\x02K\x01)R.",
    "eval": b"\x80\x02c__builtin__\neval\nX" + struct.pack("<I", len(CANARY)) + CANARY.encode() + b"\x85R.",
    "os.system": b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.",
    "torch.load": b"\x80\x02ctorch\nload\nX\x01\x00\x00\x00x\x85R.",
    "an instance": b"(i__builtin__\nlist\n.",
    "an object of a class": b"\x80\x02c__builtin__\nobject\n)\x81.",
    "an extension": b"\x80\x02\x82\x01.",
    "protocol 0": pickle.dumps({"a": 1}, 0),
    "protocol 4": pickle.dumps({"a": 1}, 4),
    "protocol 5": pickle.dumps({"a": 1}, 5),
    "a state for a list": b"\x80\x02]}b.",
    "a storage of another module": tensor_pickle(b"K\x00K\x10\x85K\x01\x85", storage=b"cos\nFloatStorage\n"),
    "an offset below zero": tensor_pickle(b"J\xff\xff\xff\xffK\x10\x85K\x01\x85"),
    "a shape of 2^62": tensor_pickle(b"K\x00\x8a\x08" + struct.pack("<q", 1 << 61) + b"\x85K\x01\x85"),
    "a shape of texts": tensor_pickle(b"K\x00X\x01\x00\x00\x00aK\x01\x85"),
    "a shape without steps": tensor_pickle(b"K\x00K\x10\x85)"),
    "steps below zero": tensor_pickle(b"K\x00K\x10\x85J\xff\xff\xff\xff\x85"),
    "steps past the end": tensor_pickle(b"K\x00K\x10\x85K\x63\x85"),
    "forty dimensions": tensor_pickle(b"K\x00(" + b"K\x01" * 40 + b"t(" + b"K\x01" * 40 + b"t"),
    "more numbers than there are": tensor_pickle(b"K\x00M\x00\x10\x85K\x01\x85", count=b"M\x00\x10"),
    "numbers without end": b"\x80\x02" + b"K\x01" * 500_000,
}

FILES: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "one byte": lambda: b"\x80",
    "a text": lambda: b"version https://git-lfs.github.com/spec/v1\n",
    "a page that says that there is no such file": lambda: b"<!doctype html><title>404</title>" * 100,
    "ten million brackets": lambda: b"]" * 10_000_000,
    "ten million brackets behind a protocol": lambda: b"\x80\x02" + b"]" * 10_000_000,
    "a header of 2^63 bytes": lambda: LENGTH.pack(2**63) + b"{" + bytes(100),
    "a header of 99 million bytes": lambda: LENGTH.pack(99_000_000) + b"{" + bytes(99_000_000),
    "a header past the end": lambda: LENGTH.pack(1000) + b"{}",
    "half of an archive": lambda: archive()[: len(archive()) // 2],
    "an archive without its end": lambda: archive()[:-30],
    "an archive with something behind it": lambda: archive() + b"PK",
    "an archive that is compressed": lambda: repacked(zipfile.ZIP_DEFLATED),
    "an archive compressed by another method": lambda: repacked(zipfile.ZIP_LZMA),
    "an archive with its description twice": lambda: repacked(twice="data.pkl"),
    "an archive with its numbers twice": lambda: repacked(twice="data/0"),
    "an archive of two folders": lambda: repacked(folders=True),
    "an archive that inflates to 128 MB": bomb,
    "an archive of overlapping files": overlapping,
    "an archive without a description": lambda: as_archive(b"").replace(b"data.pkl", b"dota.pkl"),
    "an archive with a directory of four gigabytes": lambda: with_directory_of(0xFFFFFFF0),
    "numbers of another byte order": lambda: edited(b"little", b"bigger"),
    "another type behind the same numbers": lambda: edited(b"FloatStorage", b"FloatStorbge"),
    "a stream that is cut": lambda: stream()[:-100],
    "a stream with something behind it": lambda: stream() + b"x",
    "a stream of 2^60 numbers": lambda: stream().replace(struct.pack("<q", 600 * 32), struct.pack("<q", 2**60)),
    "a stream and nothing else": lambda: stream()[:14],
    "a stream whose code is run": lambda: stream()[:60] + pickle.dumps(PickledCanary(), 2),
}

WHOLE = (
    "an archive with something behind it",
    "an archive with a directory of four gigabytes",
    "a stream with something behind it",
)
"""Files that say something untrue beside weights that are whole, which torch reads."""


@cache
def stream() -> bytes:
    """The official file as torch wrote it before there were archives."""
    buffer = io.BytesIO()
    torch.save(official_state(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def said(folder: Path, command: list[str], expected: str) -> Outcome:
    """Run a command on a broken file: status 2, and a sentence."""
    (folder / "m.safetensors").write_bytes(own_file()[:-8])
    (folder / "dir").mkdir()
    finished = run_command(command)
    assert finished.status == 2, finished
    assert expected in finished.errors, finished.errors
    assert "Traceback" not in finished.errors
    return "refused"


COMMANDS = {
    "info": (["info", "m.safetensors"], "damaged"),
    "info of a folder": (["info", "dir"], "dir holds no checkpoint"),
    "info of nothing": (["info", "nothing.pt"], "no checkpoint at nothing.pt"),
    "convert": (["convert", "m.safetensors", "-o", "out.safetensors"], "damaged"),
    "convert of an address that says nothing": (
        ["convert", "hf-hub:x", "-o", "out.safetensors"],
        "names no checkpoint",
    ),
    "export": (["export", "m.safetensors", "--target", "torch", "-o", "out"], "damaged"),
    "embed": (["embed", "dir", "-m", "nothing.pt"], "no"),
}


def warm() -> None:
    """Load and fail to load once before processes are forked: what is found out about models is remembered."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.pt"
        torch.save(official_state(), path)
        accepted(path)
        torch.save(dict(list(official_state().items())[::2]), path)
        with suppress(ValueError):
            load_model(path, SMALL)
    for form in FORMS:
        tensor_shapes(SMALL, form)
    run_command(["info", "nothing.pt"])
    # What is here by now is not looked through again in every process.
    gc.freeze()


def in_files() -> Iterator[tuple[str, Callable[[Path], Outcome]]]:
    """Yield what is done with whole files, pickles and commands."""
    for name, pickled in PICKLES.items():
        yield f"pickle: {name}", partial(written, data=partial(as_archive, pickled))
    for name, data in FILES.items():
        yield f"file: {name}", partial(written, data=data, then=accepted if name in WHOLE else refused)
    for name, (command, expected) in COMMANDS.items():
        yield f"command: {name}", partial(said, command=command, expected=expected)


def in_tensors() -> Iterator[tuple[str, Callable[[Path], Outcome]]]:
    """Yield what is done with files that torch wrote."""
    for name, value in TENSORS.items():
        make = changed(OFFICIAL, value)
        yield f"tensor in an archive: {name}", partial(saved, make=make, then=refused, stream=False)
        if name in ("int64", "bool", "complex64", "sparse", "expanded to a terabyte", "an object that runs code"):
            yield f"tensor in a stream: {name}", partial(saved, make=make, then=refused, stream=True)
    for name, make in STATES.items():
        yield f"archive: {name}", partial(saved, make=make, then=refused, stream=False)
    for name, make in FINE.items():
        yield f"archive that is fine: {name}", partial(saved, make=make, then=accepted, stream=False)
        yield f"stream that is fine: {name}", partial(saved, make=make, then=accepted, stream=True)


def cases() -> Iterator[Case]:
    """Yield every file, and what is done with it."""
    own_file(), official_state(), stream()
    warm()
    for name, (old, new) in SPECS.items():
        yield Case(name=f"spec: {name}", attempt=partial(with_header, edit=spec_with(old, new), then=refused))
    for name, edit in HEADERS.items():
        yield Case(name=f"header: {name}", attempt=partial(with_header, edit=edit, then=refused))
    yield Case(name="header: as it is", attempt=partial(with_header, edit=lambda _: None, then=accepted))
    for name, attempt in (*in_tensors(), *in_files()):
        yield Case(name=name, attempt=attempt)
