"""Whose files are believed: the author's own, by the digest of what was written here, and those of whom is trusted."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
from itertools import product

import attrs
import pytest
import torch
from torch import nn

import mobileclip
from mobileclip.encoders import TextEncoderSpec, text_encoder_families
from mobileclip.export import load_export, read_contract, read_report, verify_export
from mobileclip.export.running import remember_export, was_written_here
from mobileclip.inputs import TextInput
from tests.build.commands import refused, worked
from tests.collections.pictures import draw
from tests.errors import fails
from tests.export.hostile_folders import sign
from tests.export.litert import EXPORT
from tests.export.models import exported
from tests.preloaded import preloaded

# PyTorch's of its own GRU.
pytestmark = pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")


@attrs.frozen(kw_only=True)
class OddSpec(TextEncoderSpec):
    """Of a tower whose author likes operations that no published tower has."""

    width: int = 16
    recurrent: bool = True

    def build(self):
        return OddEncoder(self)


class OddEncoder(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        self.words = nn.Embedding(spec.input.vocab_size, spec.width)
        self.reading = nn.GRU(spec.width, spec.width, batch_first=True)
        self.mixing = nn.Parameter(torch.randn(spec.width, spec.width) / spec.width**0.5)
        self.project = nn.Linear(3 * spec.width, spec.embedding_dim)

    def forward(self, tokens):
        read = self.words(tokens)
        if self.spec.recurrent:
            read, _ = self.reading(read)
            read = torch.where(torch.isnan(read), torch.zeros_like(read), read)
        mixed = torch.einsum("btw,wv->btv", read, self.mixing)
        best = mixed.topk(2, dim=1).values
        return self.project(torch.cat([read[:, -1], best[:, 0], best[:, 1]], dim=-1))


@pytest.fixture(scope="module")
def odd():
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(text_encoder_families, "_values", dict(text_encoder_families._values))
        text_encoder_families.register("test_odd")(OddSpec)
        torch.manual_seed(0)
        yield OddSpec(embedding_dim=12, input=TextInput(context_length=12, vocab_size=600)).build().eval()


@pytest.mark.parametrize("target", ["onnx", pytest.param("openvino", marks=pytest.mark.slow), "torch"])
def test_the_authors_own_operations_are_judged_by_numbers(odd, target, tmp_path, monkeypatch):
    """And where it is from elsewhere, a runtime that validates files runs it all the same."""
    folder = exported(odd, tmp_path / "out", target=target, tower="text")
    report = read_report(folder)
    assert report.passed, report.failures
    assert was_written_here(folder)
    assert verify_export(folder) == report
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    with contextlib.nullcontext() if target == "onnx" else fails(ValueError):
        assert verify_export(folder) == report


@pytest.fixture(params=["torch", "openvino"])
def believing(request, small_export):
    """An export of both towers for a runtime that believes what it reads."""
    return small_export(request.param)


FOREIGN = "was written on another machine"
OPENERS = (verify_export, load_export, mobileclip.load)


def test_what_a_colleague_wrote_is_opened_with_trust_or_in_a_trusted_folder(
    believing, tmp_path, capsys, monkeypatch, another_machine
):
    assert "--trust" in refused(capsys, FOREIGN, "verify", believing)
    worked(capsys, "verify", believing, "--trust")
    deployed = shutil.copytree(believing, tmp_path / "models" / "one")
    monkeypatch.setenv("MOBILECLIP_TRUST", str(tmp_path / "models"))
    for opened in OPENERS:
        opened(deployed)
        with fails(ValueError):
            opened(believing)
    (tmp_path / "models" / "link").symlink_to(believing)
    with fails(ValueError):
        mobileclip.load(tmp_path / "models" / "link")
    for trusted in ("models", ""):
        monkeypatch.setenv("MOBILECLIP_TRUST", trusted)
        with fails(ValueError, trusted):
            mobileclip.load(deployed)


def test_a_strangers_file_reaches_no_runtime(believing, tmp_path):
    """The runtime would say that it cannot read it, as it does where it is trusted."""
    theirs, contract = shutil.copytree(believing, tmp_path / "theirs"), read_contract(believing)
    name = next(name for name in contract.files if name.startswith(contract.towers[0].file))
    (theirs / name).write_bytes(b"nothing that a runtime can read")
    with fails(ValueError):
        verify_export(theirs, trust=True)
    sign(theirs)
    for opened in OPENERS:
        with fails(ValueError):
            opened(theirs)
        with fails(ValueError, name):
            opened(theirs, trust=True)


BY_DEFAULT = [("torch", "inline"), ("openvino", "local")]


@pytest.mark.parametrize(
    ("believing", "engine"),
    [
        pytest.param(*one, marks=[pytest.mark.slow] * (one not in BY_DEFAULT))
        for one in product(["torch", "openvino"], ["inline", "local"])
    ],
    indirect=["believing"],
)
def test_an_index_of_what_a_colleague_wrote(believing, engine, tmp_path, capsys, another_machine):
    """Each command that loads the model asks for trust; the index does not remember it."""
    photos, index, quietly = tmp_path / "photos", ("--index", tmp_path / "index"), ("--quiet", "-j", 1)
    draw(photos / "one.png", 1)
    draw(photos / "two.png", 2)
    made = ("index", photos, *index, "-m", believing, *quietly, "--engine", engine)
    refused(capsys, FOREIGN, *made)
    assert "2 encoded" in worked(capsys, *made, "--trust")
    refused(capsys, FOREIGN, "search", "a cat", *index)
    assert len(worked(capsys, "search", "a cat", *index, "--trust").splitlines()) == 2
    draw(photos / "three.png", 3)
    found = ("dedup", photos, *index, *quietly, "-o", tmp_path / "list.jsonl")
    refused(capsys, FOREIGN, *found)
    worked(capsys, *found, "--trust")
    refused(capsys, FOREIGN, "serve", *index)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """An export whose runtime believes what it reads, and a machine that has written nothing yet."""
    import ai_edge_litert  # noqa: F401

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return shutil.copytree(EXPORT, tmp_path / "export")


def test_what_this_machine_wrote_needs_no_trust(own):
    assert not was_written_here(own)
    with fails(ValueError):
        mobileclip.load(own)
    remember_export(own)
    assert was_written_here(own)
    assert mobileclip.load(own).encode_text("a cat").isfinite().all()
    moved = own.rename(own.parent / "elsewhere")
    assert load_export(moved).encode_text(torch.zeros(1, 12, dtype=torch.int64)).isfinite().all()
    # A contract names every file by its hash: any other is another export.
    contract = moved / "mobileclip.json"
    contract.write_text(contract.read_text().replace('"normalize": true', '"normalize":  true'))
    assert not was_written_here(moved)


def _remember(state, folder):
    os.environ["XDG_STATE_HOME"] = str(state)
    remember_export(folder)


def test_many_write_at_once(tmp_path, monkeypatch):
    """Of eight processes, each of which remembers an export, none forgets another's."""
    folders, state = [tmp_path / str(number) for number in range(8)], tmp_path / "state"
    for folder in folders:
        folder.mkdir()
        (folder / "mobileclip.json").write_text(f"contract {folder}")
    with multiprocessing.get_context("fork").Pool(8) as pool:
        pool.starmap(_remember, [(state, folder) for folder in folders])
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    assert all(map(was_written_here, folders))


_HOMELESS = """
import os, pathlib, pwd, sys
os.environ.pop("HOME", None); os.environ.pop("XDG_STATE_HOME", None)
def nobody(_):
    raise KeyError("no such user")
pwd.getpwuid = nobody
from mobileclip.export.running import was_written_here, remember_export
folder = pathlib.Path(sys.argv[1])
remember_export(folder)
print(was_written_here(folder))
"""


def test_without_a_home_nothing_is_remembered_and_nothing_fails(own, tmp_path):
    done = preloaded().call("tests.preloaded:python", "-c", _HOMELESS, str(own), folder=tmp_path)
    assert done.status == 0, done.output
    assert "False" in done.output.splitlines()
    assert "no home folder to record" in done.output


def test_a_register_that_cannot_be_written_or_is_damaged_knows_nothing(own, tmp_path, monkeypatch, caplog):
    register = tmp_path / "state" / "mobileclip" / "exports.txt"
    register.parent.mkdir(parents=True)
    for content in (b"", b"\xff" * 100, b"x" * 2**22):
        register.write_bytes(content)
        assert not was_written_here(own)
    monkeypatch.setenv("XDG_STATE_HOME", str(register))
    remember_export(own)
    assert "cannot record that this machine wrote" in caplog.text
    assert not was_written_here(own)
