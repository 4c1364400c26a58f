"""Numbers on a grid of 8 bits: as ONNX Runtime rounds them, and with the gradients of their formulas."""

import pytest
import torch

from mobileclip.inference.quantization import LARGEST_VALUE, LARGEST_WEIGHT, on_grid, value_range, weight_steps


def test_halves_go_to_the_even_number_and_what_is_outside_to_the_end():
    x = torch.tensor([-9.0, -0.75, -0.25, 0.0, 0.25, 0.75, 1.25, 9.0])
    y = on_grid(x, torch.tensor(0.5), torch.tensor(2.0), least=0, largest=5)
    assert y.tolist() == [-1.0, -1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.5]


def test_gradients_are_those_of_learned_step_sizes():
    x = torch.tensor([0.8, -0.3, 9.0, -9.0], requires_grad=True)
    step, zero = torch.tensor(0.5, requires_grad=True), torch.tensor(1.2, requires_grad=True)
    y = on_grid(x, step, zero, least=0, largest=4)
    for index, (own, of_step, of_zero) in enumerate(
        [(1.0, 2 - 1.6, 0.0), (1.0, -1 + 0.6, 0.0), (0.0, 3.0, -0.5), (0.0, -1.0, -0.5)]
    ):
        gradients = torch.autograd.grad(y[index], (x, step, zero), retain_graph=True)
        assert gradients[0][index] == own
        torch.testing.assert_close(torch.stack(gradients[1:]), torch.tensor([of_step, of_zero]))


@pytest.mark.extra("onnx")
@pytest.mark.parametrize("kind", ["values", "weights"])
def test_numbers_are_onnx_runtimes_to_the_bit(kind):
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 400, generator=generator) * 3
    if kind == "values":
        step, zero, ends = torch.tensor(0.0217), torch.tensor(77.0), (0, LARGEST_VALUE)
        stored, axis = np.uint8, {}
        x[0, :200] = (torch.arange(200) - 77.5) * step
    else:
        step, zero, ends = torch.rand(12, generator=generator) / 30 + 0.05, torch.zeros(()), (-127, 127)
        stored, axis = np.int8, {"axis": 0}
        x = x.clamp(-6, 6)
    initializers = [
        numpy_helper.from_array(step.numpy(), "step"),
        numpy_helper.from_array(zero.expand(step.shape).numpy().astype(stored), "zero"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"], **axis),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["y"], **axis),
    ]
    ends_of_graph = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(x.shape)) for name in "xy"]
    graph = helper.make_graph(nodes, "rounding", ends_of_graph[:1], ends_of_graph[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x.numpy()})
    shape = (-1, 1) if kind == "weights" else ()
    own = on_grid(x, step.reshape(shape), zero, least=ends[0], largest=ends[1])
    assert torch.equal(own, torch.from_numpy(expected))
    assert len(own.unique()) > 200


def test_steps_of_weights_on_a_grid_find_that_grid():
    whole = torch.tensor([[64, -3, 1, 0], [-64, 2, 2, 5]], dtype=torch.float32)
    steps = torch.tensor([0.5, 0.03])
    torch.testing.assert_close(weight_steps(whole * steps[:, None]), steps)


def test_one_weight_far_from_the_others_is_cut_for_a_smaller_error():
    row = torch.cat([torch.linspace(-1, 1, 4000), torch.tensor([1.5])])[None]
    step = weight_steps(row)
    assert step < 1.5 / LARGEST_WEIGHT
    grid = {"zero": torch.zeros(()), "least": -LARGEST_WEIGHT, "largest": LARGEST_WEIGHT}
    errors = [(on_grid(row, one, **grid) - row).square().sum() for one in (step, torch.tensor([1.5 / LARGEST_WEIGHT]))]
    assert errors[0] < errors[1]
    assert weight_steps(torch.zeros(1, 3)) > 0


def test_a_range_reaches_from_end_to_end_where_values_are_spread_evenly():
    step, zero = value_range(torch.ones(512, dtype=torch.float64), -1.0, 3.0)
    torch.testing.assert_close(step, torch.tensor(4 / LARGEST_VALUE), rtol=0.02, atol=0)
    assert zero == torch.round(1 / step)


def test_a_range_leaves_out_what_is_rare_and_far_at_its_own_end():
    counts = torch.zeros(512, dtype=torch.float64)
    counts[:64], counts[-1] = 1e6, 1
    step, zero = value_range(counts, 0.0, 8.0)
    assert zero == 0
    assert step * LARGEST_VALUE < 4
    step, zero = value_range(counts.flip(0), -8.0, 0.0)
    assert zero == LARGEST_VALUE
    assert step * LARGEST_VALUE < 4


def test_what_is_always_zero_has_a_range():
    step, zero = value_range(torch.zeros(512, dtype=torch.float64), 0.0, 0.0)
    assert step > 0
    assert zero == 0
