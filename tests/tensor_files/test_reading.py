"""Files of tensors: what torch writes comes back to the bit in both of its formats, and damage is one kind of error."""

from collections import OrderedDict
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save
from torch import nn

from mobileclip.tensor_files import CheckpointError, check_sha256, file_sha256, read_tensors
from tests.build.torch_files import torch_bytes
from tests.errors import fails

TENSORS = {
    "weight": torch.arange(12.0).reshape(3, 4) / 7,
    "turned": (torch.arange(12.0).reshape(3, 4) / 5).T,
    "part": torch.arange(20.0)[5:9],
    "half": torch.arange(4.0).half(),
    "brain": torch.arange(4.0).bfloat16(),
    "count": torch.tensor(7),
    "truth": torch.tensor([True, False]),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "empty": torch.zeros(0, 3),
}


@pytest.fixture
def reading(tmp_path):
    """A function from the bytes of a file to its tensors."""

    def read(data):
        path = tmp_path / "file"
        path.write_bytes(data)
        return read_tensors(path)[0]

    return read


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "stream"])
@pytest.mark.parametrize("nested", [dict, OrderedDict, lambda tensors: {"state_dict": tensors, "epoch": 1, "lr": 0.5}])
def test_what_torch_writes_comes_back(nested, archive, reading):
    found = reading(torch_bytes(nested(TENSORS), archive=archive))
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "stream"])
def test_a_modules_state_comes_back(archive, reading):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    found = reading(torch_bytes(module.state_dict(), archive=archive))
    for name, tensor in module.state_dict().items():
        assert torch.equal(found[name], tensor)


WEIGHTS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
COUNTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


@pytest.mark.parametrize("dtype", [*WEIGHTS, *COUNTS], ids=str)
@pytest.mark.parametrize("write", [save, torch_bytes, lambda value: torch_bytes(value, archive=False)])
def test_every_type_of_weights_comes_back(dtype, write, reading):
    tensor = torch.arange(3).to(dtype)
    found = reading(write({"a": tensor}))["a"]
    assert found.dtype == dtype
    assert torch.equal(found, tensor)


def test_tied_weights_are_read_where_they_are():
    # Two names of one storage are twice its size, and no more is allowed.
    tied = torch.rand(1000)
    for count, fits in ((2, True), (5, False)):
        outcome = _outcome(torch_bytes({f"t{index}": tied for index in range(count)}))
        assert isinstance(outcome, dict) == fits


def _outcome(data):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(data)
        try:
            return {name: tensor.clone() for name, tensor in read_tensors(path)[0].items()}
        except CheckpointError as error:
            return str(error)


def test_a_digest_is_held_against_the_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(torch_bytes(TENSORS))
    digest = file_sha256(path)
    check_sha256(path, digest)
    assert read_tensors(path, sha256=digest)[0].keys() == TENSORS.keys()
    with fails(CheckpointError, digest, "0" * 64):
        read_tensors(path, sha256="0" * 64)


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "stream"])
def test_weights_are_taken_out_of_what_training_scripts_keep_them_in(archive, reading):
    names = ("ema", "model_ema", "state_dict_ema", "state_dict", "model_state_dict", "model", "module", "params")
    for place, name in enumerate(names):
        others = {other: {"b": torch.zeros(1)} for other in names[place + 1 :]}
        assert reading(torch_bytes({"epoch": 1, **others, name: {"a": torch.ones(1)}}, archive=archive)).keys() == {"a"}
    assert reading(torch_bytes({"model": {"module": {"state_dict": {"a": torch.ones(1)}}}})).keys() == {"a"}


@settings(max_examples=250, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["archive", "stream", "safetensors"]))
def test_a_damaged_file_is_refused_or_read(data, kind):
    whole = FILES[kind]
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(whole) - 1))
        changed[place : place + 1] = data.draw(st.binary(max_size=3))
    cut = data.draw(st.integers(0, len(changed)) | st.just(len(changed)))
    outcome = _outcome(bytes(changed[:cut]))
    assert isinstance(outcome, dict) or 0 < len(outcome) < 2000


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None)
@given(data=st.binary(max_size=300), start=st.sampled_from([b"", b"\x80\x02", b"PK\x03\x04", b"\x20\0\0\0\0\0\0\0{"]))
def test_any_bytes_are_refused_or_read(data, start):
    outcome = _outcome(start + data)
    assert isinstance(outcome, dict) or 0 < len(outcome) < 2000


SMALL = {name: TENSORS[name].contiguous() for name in ("weight", "half", "count")}
FILES = {"archive": torch_bytes(SMALL), "stream": torch_bytes(SMALL, archive=False), "safetensors": save(SMALL)}
