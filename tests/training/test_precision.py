"""In bfloat16, products alone are narrow: what is summed over many, and what is kept, stays in float32."""

from collections import defaultdict

import attrs
import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from mobileclip.blocks import set_attention_backend
from mobileclip.training import ImageTextObjective, MovingAverage, World
from tests.training.runs import batch_of, new_model, training_spec
from tests.training.test_objective import TRANSFORMERS

WIDE, NARROW = {torch.float32}, {torch.bfloat16}


class Dtypes(TorchDispatchMode):
    """Notes of every operation the types of what goes in and comes out, in floating point, place by place."""

    def __init__(self):
        super().__init__()
        self.inputs, self.outputs = defaultdict(set), defaultdict(set)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.split("::")[1]
        for noted, values in ((self.inputs, (args, kwargs)), (self.outputs, result)):
            tensors = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]
            for place, tensor in enumerate(tensors):
                if tensor.is_floating_point():
                    noted[name].add(tensor.dtype)
                    noted[name, place].add(tensor.dtype)
        return result


def step_of(model, **changes):
    """The operations of a step's forward pass and those of its backward pass."""
    spec = training_spec(9, precision="bfloat16", **changes)
    objective = ImageTextObjective(spec, model=model, world=World())
    with Dtypes() as forward:
        terms = objective(batch_of(0))
    assert {term.dtype for term in terms} == WIDE
    with Dtypes() as backward:
        terms[-1].backward()
    return objective, forward, backward


@pytest.mark.parametrize("make", [new_model, TRANSFORMERS.build], ids=["convolutions", "transformers"])
def test_what_a_step_computes_in(make):
    tiled = attrs.evolve(training_spec(9).loss, backend="tiled")  # as in batches of more than a few hundred
    objective, forward, backward = step_of(make(), loss=tiled)
    # Products are narrow,
    assert forward.inputs["convolution"] == forward.inputs["addmm"] == forward.inputs["mm"] == NARROW
    # sums over many are not: the statistics of norms, what softmax divides by, the lengths of embeddings, the loss.
    norms = [name for name in ("native_batch_norm", "native_layer_norm") if name in forward.outputs]
    assert norms
    for name in norms:
        assert forward.outputs[name, 1] == forward.outputs[name, 2] == WIDE
    assert forward.outputs["_scaled_dot_product_flash_attention_for_cpu", 1] == WIDE
    assert forward.outputs["linalg_vector_norm"] == WIDE
    assert forward.inputs["pair_terms"] == forward.outputs["pair_terms"] == WIDE
    assert backward.inputs["linalg_vector_norm"] <= WIDE
    # So is what is kept from step to step.
    optimizer = training_spec(9).optimizer.build(objective)
    optimizer.step()
    average = MovingAverage(objective.model, 0.9)
    average.update(objective.model)
    kept = [*objective.state_dict().values(), *average.module.state_dict().values()]
    kept += [parameter.grad for parameter in objective.parameters()]
    kept += [value for state in optimizer.state.values() for value in state.values()]
    assert {value.dtype for value in kept if value.is_floating_point()} == WIDE


def test_the_loss_as_a_formula_multiplies_in_full():
    wide = attrs.evolve(training_spec(9).loss, backend="dense")
    _, forward, backward = step_of(new_model(), loss=wide)
    assert forward.inputs["mm"] > WIDE
    assert backward.inputs["linalg_vector_norm"] <= WIDE


def test_attention_by_the_formula_is_wide_altogether():
    model = TRANSFORMERS.build()
    set_attention_backend(model, "reference")
    _, forward, _ = step_of(model)
    assert forward.inputs["_softmax"] == forward.outputs["_softmax"] == forward.inputs["bmm"] == WIDE
