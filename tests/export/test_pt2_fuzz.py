"""Exported programs changed at random: nothing runs, and only a ValueError comes out."""

import copy
import json
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mobileclip.export import ExportSpec, export_model, read_contract
from mobileclip.export.targets import targets
from tests.export.hostile import CONSTANTS, MODEL, WEIGHTS, read_pt2, write_pt2
from tests.export.models import SHALLOW, seeing
from tests.trials.harness import CANARY

FEW, MANY = 20, 3000
VALUES = st.one_of(
    st.sampled_from([CANARY, f'"; {CANARY}', "torch.os.system", "s0", "../x", "as_expr", "__class__", "x" * 600]),
    st.sampled_from([None, True, [], {}, -1, 0, 2, 2**31, 2**63 - 1, 2**80, 1e300]),
    st.sampled_from([{"as_expr": {"expr_str": CANARY, "hint": None}}, {"as_operator": "torch.os.system"}]),
    st.sampled_from([{"as_string": CANARY}, {"as_int": 2**40}, {"as_ints": [2**20, 2**20]}, {"as_none": True}]),
)
TOKENS = torch.zeros(5, 12, dtype=torch.int64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    spec = ExportSpec(out=tmp_path_factory.mktemp("fuzz") / "export", target="torch", tower="text", dynamic_batch=True)
    return export_model(seeing(SHALLOW), spec)


def walk(draw, found):
    """Return a part of a JSON value, drawn level by level: what it lies in, and its key there."""
    while True:
        key = draw(st.sampled_from(sorted(found) if isinstance(found, dict) else range(len(found))))
        inner = found[key]
        if not isinstance(inner, (dict, list)) or not inner or draw(st.integers(0, 7)) == 0:
            return found, key
        found = inner


def change(draw, found):
    """Replace, remove, double, rename or swap one part."""
    parent, key = walk(draw, found)
    kind = draw(st.integers(0, 6))
    if kind == 0:
        parent[key] = copy.deepcopy(draw(VALUES))
    elif kind == 1:
        del parent[key]
    elif kind == 2 and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[key]))
    elif kind == 3 and isinstance(parent, dict):
        parent[draw(st.sampled_from([CANARY, "as_expr", "as_graph", "custom_obj", "s1"]))] = parent.pop(key)
    elif parent:
        # What still fits PyTorch gets further than noise: a value of the same key or kind elsewhere.
        for _ in range(20):
            other, place = walk(draw, found)
            if place == key or type(other[place]) is type(parent[key]):
                parent[key] = copy.deepcopy(other[place])
                return


def used(folder, path):
    """Open and run a file as `mobileclip verify` does; ValueErrors are what it should end with."""
    (text,) = read_contract(folder).towers
    target = targets["torch"]
    try:
        target.inspect(path, text)
        (embeddings,) = target.open(path, text)(TOKENS)
    except ValueError:
        return
    assert isinstance(embeddings, torch.Tensor)


def fuzz_texts(folder, tmp_path, seen, count):
    members = read_pt2(folder / "text.pt2")

    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.data())
    def run(data):
        changed = dict(members)
        name = data.draw(st.sampled_from([MODEL, MODEL, MODEL, WEIGHTS, CONSTANTS]))
        found = json.loads(changed[name])
        for _ in range(data.draw(st.integers(1, 3))):
            if found:
                change(data.draw, found)
        changed[name] = json.dumps(found).encode()
        write_pt2(tmp_path / "text.pt2", changed)
        used(folder, tmp_path / "text.pt2")
        assert not seen

    run()


def fuzz_bytes(folder, tmp_path, seen, count):
    sound = (folder / "text.pt2").read_bytes()
    ends = st.integers(0, len(sound)) | st.integers(0, 200) | st.integers(len(sound) - 2000, len(sound))

    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(st.tuples(ends, st.integers(0, 40), st.binary(max_size=40)), min_size=1, max_size=4))
    def run(changes):
        data = sound
        for place, removed, added in changes:
            data = data[:place] + added + data[place + removed :]
        (tmp_path / "text.pt2").write_bytes(data)
        used(folder, tmp_path / "text.pt2")
        assert not seen

    run()


def test_texts(folder, tmp_path, seen):
    fuzz_texts(folder, tmp_path, seen, FEW)


def test_bytes(folder, tmp_path, seen):
    fuzz_bytes(folder, tmp_path, seen, FEW)


@pytest.mark.slow
def test_many_texts(folder, tmp_path, seen):
    fuzz_texts(folder, tmp_path, seen, int(os.environ.get("MOBILECLIP_FUZZ", MANY)))


@pytest.mark.slow
def test_many_bytes(folder, tmp_path, seen):
    fuzz_bytes(folder, tmp_path, seen, int(os.environ.get("MOBILECLIP_FUZZ", MANY)))
