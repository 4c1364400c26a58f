"""Exported programs from strangers: what is not known to run nothing is refused, and what we write is known."""

import contextlib
import json

import pytest
import torch

from mobileclip.export import ExportSpec, export_model, read_contract
from mobileclip.export.targets import targets
from mobileclip.export.targets.torch.pt2 import check_pt2, load_pt2
from tests.export.hostile import ARCHIVES, CONTENTS, WEIGHTS, make, read_pt2, write_pt2
from tests.export.models import SHALLOW, seeing


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("pt2") / "export"
    return export_model(seeing(SHALLOW), ExportSpec(out=out, target="torch", tower="text"))


@pytest.fixture(scope="module")
def sound(folder):
    return folder / "text.pt2"


TOKENS = torch.zeros(1, 12, dtype=torch.int64)


@pytest.mark.parametrize(
    "name",
    [
        "a size that is evaluated",
        "a pickled weight",
        "a pickled constant",
        "an opaque object",
        "a pickled example",
        "weights of the older format",
        "a name twice",
        "a name twice in other letters",
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_these_are_real(name, sound, tmp_path, seen):
    """PyTorch runs what is in them."""
    make(name, sound, tmp_path / "text.pt2")
    with contextlib.suppress(Exception):
        torch.export.load(tmp_path / "text.pt2")
    assert seen


@pytest.mark.parametrize("name", [*CONTENTS, *ARCHIVES])
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_nothing_in_them_is_run(name, folder, sound, tmp_path, seen):
    make(name, sound, tmp_path / "text.pt2")
    (text,) = read_contract(folder).towers
    with pytest.raises(ValueError, match=r"text\.pt2") as refused:
        targets["torch"].open(tmp_path / "text.pt2", text)(TOKENS)
    assert not seen
    assert len(str(refused.value)) < 2000


def test_most_are_refused_unread(sound, tmp_path):
    """PyTorch itself sees only what fits no graph, or is too large when it runs."""
    late = []
    for name in CONTENTS:
        make(name, sound, tmp_path / "text.pt2")
        try:
            check_pt2(tmp_path / "text.pt2")
        except ValueError:
            continue
        late.append(name)
    assert late == [
        "a value of 2^60 bytes",
        "a tensor of 2^40 from nothing",
        "a name that is nowhere",
        "operations of other shapes",
    ]


def test_a_sound_program_is_the_same_when_it_is_written_again(sound, tmp_path):
    """What refuses the others is their one change."""
    write_pt2(tmp_path / "text.pt2", read_pt2(sound))
    module = load_pt2(tmp_path / "text.pt2").module()
    assert torch.equal(module(TOKENS), torch.export.load(sound).module()(TOKENS))


def test_weights_of_another_type_than_the_program_takes_are_refused(sound, tmp_path):
    """A run without numbers does not notice: not every operation looks at its bias then."""
    members = read_pt2(sound)
    table = json.loads(members[WEIGHTS])
    metas = {name: entry["tensor_meta"] for name, entry in table["config"].items()}
    name = next(name for name in metas if name.endswith("bias"))
    metas[name]["dtype"] = 1  # uint8
    members[WEIGHTS] = json.dumps(table).encode()
    write_pt2(tmp_path / "text.pt2", members)
    with pytest.raises(ValueError, match=rf"the weight {name} is missing, or of another type or shape"):
        load_pt2(tmp_path / "text.pt2")
