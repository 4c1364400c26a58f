"""What every block promises is the contract suite's to say; ours keep it, and each way to break it is told."""

import copy
from itertools import count

import pytest
import torch
from torch import nn

from mobileclip import blocks
from mobileclip.reparam import LayerScale, Reparameterizable
from mobileclip.testing import check_block
from tests.blocks.contract import CASES, CONVOLUTIONAL
from tests.errors import fails


def test_the_table_has_every_block():
    exported = {value for name in blocks.__all__ if isinstance(value := getattr(blocks, name), type)}
    modules = {cls for cls in exported if issubclass(cls, nn.Module)}
    assert {type(case.make()) for case in CASES.values()} == modules


@pytest.mark.parametrize("name", CASES)
def test_a_block_keeps_the_contract(name):
    """All that take maps of any sides are exported at once, in `test_tools`."""
    case = CASES[name]
    export = name not in CONVOLUTIONAL
    check_block(case.make, *case.inputs(batch=3), shape=(3, *case.output[1:]), export=export)


class Plain(nn.Module):
    """The smallest block: a projection, which is not folded."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(4, 4)
        self.more()

    def more(self):
        pass

    def forward(self, x):
        return self.project(x)


class Folding(Reparameterizable, Plain):
    """Folds to its projection."""

    is_folded = False

    def fold(self):
        return self.project


class Spec:
    build = Plain


def odd(name, base=Plain, **members):
    """Return a class of its own, which pickle finds here."""
    globals()[name] = type(name, (base,), members | {"__module__": __name__})
    return globals()[name]


def giving(name, compute):
    """Return a class of its own that gives this of its projection and its input."""
    return odd(name, forward=lambda self, x: compute(self.project, x))


def clipped(project):
    return nn.Sequential(project, nn.Hardtanh(-0.1, 0.1))


def refused(_):
    raise ValueError("there is an adapter in it")


def folded_otherwise_again(block):
    if block.is_folded:
        return clipped(block.project)
    folded = copy.deepcopy(block)
    folded.is_folded = True
    return folded


def folded_with_its_origin(block):
    block.all[0].project.weight.data.zero_()
    return block.project


made, grown = count(), count()
Refused = odd("Refused", Folding, fold=refused)
Leaving = odd(
    "Leaving", Folding, fold=lambda self: nn.Sequential(self.project, LayerScale(4, initial=1.0, spatial=False)).eval()
)


@pytest.mark.parametrize("block", [Plain, Spec()], ids=["a class", "a spec"])
def test_the_smallest_keeps_it(block):
    check_block(block, torch.randn(3, 4))


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (
            odd("Unseeded", more=lambda self: self.project.bias.data.fill_(next(made))),
            "Unseeded, built again from the same seed, has different tensors: project.bias",
        ),
        (giving("Pair", lambda project, x: (project(x), x)), "Pair returned tuple"),
        (giving("Wide", lambda project, x: project(x)[:, :3]), "Wide returned the shape (3, 3), expected (3, 4)"),
        (giving("Summed", lambda project, x: project(x)[1:]), "Summed returned 2 rows for 3 examples"),
        (giving("Double", lambda project, x: project(x).double()), "Double returned torch.float64"),
        (giving("Still", lambda project, x: project(x).detach()), "the output of Still does not"),
        (odd("Idle", more=lambda self: setattr(self, "idle", nn.PReLU())), "no finite gradient reaches idle.weight of"),
        (giving("Cut", lambda project, x: project(x.detach())), "no finite gradient reaches input 0 of Cut"),
        (
            giving("Mixing", lambda project, x: project(x if project.training else x - x.mean(0))),
            "Mixing, in evaluation mode on a single example, returned different values",
        ),
        (
            odd(
                "Counting",
                more=lambda self: self.register_buffer("calls", torch.zeros(())),
                forward=lambda self, x: self.project(x + 0 * self.calls.add_(1)),
            ),
            "Counting, after evaluation, has different tensors: calls",
        ),
        (
            odd(
                "Holding",
                more=lambda self: setattr(self, "shift", torch.randn(4)),
                forward=lambda self, x: self.project(x + self.shift.to(x.dtype)),
            ),
            "Holding with the state dict of another build returned different values",
        ),
        (
            odd("Growing", more=lambda self: self.register_buffer("late", None if next(grown) < 3 else torch.ones(4))),
            "Growing cannot load the state dict of another build",
        ),
        (odd("Kept", __reduce_ex__=refused), "Kept cannot be copied"),
        (odd("Local", more=lambda self: setattr(self, "way", lambda: 0)), "Local cannot be pickled"),
        (odd("Shared", __deepcopy__=lambda self, _: self), "copied Shared shares"),
        (
            giving("Float", lambda project, x: project(x) + torch.zeros((), dtype=torch.float32).expand(4)),
            "Float returned torch.float32 for torch.bfloat16",
        ),
        (
            giving("Coarse", lambda project, x: project(x) * (1.1 if x.dtype == torch.bfloat16 else 1)),
            "Coarse in torch.bfloat16 returned different values",
        ),
        (giving("Asking", lambda project, x: project(x) if x.max().item() < 9 else x), "cannot export Asking"),
        (
            giving("Rewritten", lambda project, x: project(1 - x if torch.compiler.is_compiling() else x)),
            "Rewritten after torch.export returned different values",
        ),
        (Refused, "Refused cannot be folded: cannot fold the Refused into an equal module: there is an adapter"),
        (odd("Unequal", Folding, fold=lambda self: clipped(self.project)), "folded Unequal returned different values"),
        (Leaving, "folded Leaving still contains foldable modules: ['LayerScale']"),
        (
            odd("Again", Folding, fold=folded_otherwise_again, foldable=property(lambda self: not self.is_folded)),
            "Again, folded twice, returned different values",
        ),
        (
            odd("Reaching", Folding, fold=folded_with_its_origin, all=[], more=lambda self: self.all.append(self)),
            "Reaching, after folding a copy, has different tensors: project.weight",
        ),
    ],
)
def test_each_way_to_break_it_is_told(block, said):
    with fails(AssertionError, said):
        check_block(block, torch.randn(3, 4), shape=(2, 4) if "rows" in said else (3, 4))


@pytest.mark.parametrize("block", [Refused, Leaving])
def test_what_is_not_folded_wholly_may_say_so(block):
    check_block(block, torch.randn(3, 4), folds=False)
