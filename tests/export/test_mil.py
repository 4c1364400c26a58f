"""The reading of Core ML's programs, operation by operation, against PyTorch."""

import weakref

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mobileclip.export.targets.coreml.mil import MilProgram, quiet, read_program
from tests.errors import fails

GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def program(build, *inputs):
    """A program that takes the inputs as a and b; programs that come from files are in `test_coreml.py`."""
    with quiet():  # seconds, which only who runs these pays
        import coremltools
        from coremltools.converters.mil import Builder
        from coremltools.converters.mil.mil import types
    kinds = {torch.float32: types.fp32, torch.int32: types.int32}
    specs = [Builder.TensorSpec(shape=tuple(tensor.shape), dtype=kinds[tensor.dtype]) for tensor in inputs]
    take = (lambda a: build(Builder, a)) if len(inputs) == 1 else (lambda a, b: build(Builder, a, b))
    made = Builder.program(input_specs=specs, opset_version=coremltools.target.iOS17)(take)
    return MilProgram(description=None, function=made.functions["main"])


def check(build, expected, *inputs):
    (ours,) = program(build, *inputs).run(dict(zip("ab", inputs, strict=False)))
    assert ours.dtype == expected.dtype
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


IMAGE, ROWS, SQUARE = randn(2, 4, 6, 5), randn(3, 7), randn(2, 3, 4, 4)
KERNEL, BIAS = randn(8, 2, 3, 3), randn(8)
MATRIX, SHIFT = randn(5, 7), randn(5)
PLAIN = {"batch_dims": 0, "validate_indices": False}
INDEX = torch.tensor([[2, 0], [1, 1]], dtype=torch.int32)
TOKENS = torch.tensor([[5, 40000, 1], [9, 3, 40001]], dtype=torch.int32)


@pytest.mark.parametrize(
    ("name", "build", "expected", "inputs"),
    [
        ("add", lambda mb, a, b: mb.add(x=a, y=b), ROWS + MATRIX[:3], (ROWS, MATRIX[:3])),
        ("add a number", lambda mb, a: mb.add(x=a, y=np.float32(0.5)), ROWS + 0.5, (ROWS,)),
        ("sub", lambda mb, a, b: mb.sub(x=a, y=b), ROWS - MATRIX[:3], (ROWS, MATRIX[:3])),
        ("mul", lambda mb, a: mb.mul(x=a, y=np.float32(3)), ROWS * 3, (ROWS,)),
        ("real_div", lambda mb, a, b: mb.real_div(x=a, y=b), ROWS / MATRIX[:3], (ROWS, MATRIX[:3])),
        ("maximum", lambda mb, a: mb.maximum(x=a, y=np.float32(0.1)), ROWS.clamp_min(0.1), (ROWS,)),
        ("relu", lambda mb, a: mb.relu(x=a), ROWS.relu(), (ROWS,)),
        ("sigmoid", lambda mb, a: mb.sigmoid(x=a), ROWS.sigmoid(), (ROWS,)),
        ("gelu", lambda mb, a: mb.gelu(x=a, mode="EXACT"), F.gelu(ROWS), (ROWS,)),
        ("softmax", lambda mb, a: mb.softmax(x=a, axis=0), ROWS.softmax(0), (ROWS,)),
        ("identity", lambda mb, a: mb.identity(x=a), ROWS, (ROWS,)),
        ("linear", lambda mb, a: mb.linear(x=a, weight=MATRIX.numpy()), ROWS @ MATRIX.T, (ROWS,)),
        (
            "linear with a bias",
            lambda mb, a: mb.linear(x=a, weight=MATRIX.numpy(), bias=SHIFT.numpy()),
            ROWS @ MATRIX.T + SHIFT,
            (ROWS,),
        ),
        (
            "matmul",
            lambda mb, a, b: mb.matmul(x=a, y=b, transpose_x=False, transpose_y=True),
            SQUARE @ SQUARE.flip(0).mT,
            (SQUARE, SQUARE.flip(0)),
        ),
        (
            "matmul of the first one's transpose",
            lambda mb, a, b: mb.matmul(x=a, y=b, transpose_x=True, transpose_y=False),
            SQUARE.mT @ SQUARE.flip(0),
            (SQUARE, SQUARE.flip(0)),
        ),
        (
            "conv",
            lambda mb, a: mb.conv(
                x=a,
                weight=KERNEL.numpy(),
                bias=BIAS.numpy(),
                strides=[2, 1],
                pad_type="custom",
                pad=[1, 0, 2, 1],
                dilations=[1, 1],
                groups=2,
            ),
            F.conv2d(F.pad(IMAGE, (2, 1, 1, 0)), KERNEL, BIAS, stride=(2, 1), groups=2),
            (IMAGE,),
        ),
        (
            "conv, padded alike on both sides",
            lambda mb, a: mb.conv(x=a, weight=KERNEL.numpy(), pad_type="custom", pad=[1, 1, 2, 2], groups=2),
            F.conv2d(IMAGE, KERNEL, padding=(1, 2), groups=2),
            (IMAGE,),
        ),
        (
            "conv without padding",
            lambda mb, a: mb.conv(x=a, weight=KERNEL.numpy(), pad_type="valid", groups=2),
            F.conv2d(IMAGE, KERNEL, groups=2),
            (IMAGE,),
        ),
        (
            "layer_norm",
            lambda mb, a: mb.layer_norm(
                x=a, axes=[-1], gamma=MATRIX[0].numpy(), beta=MATRIX[1].numpy(), epsilon=np.float32(0.1)
            ),
            F.layer_norm(ROWS, (7,), MATRIX[0], MATRIX[1], 0.1),
            (ROWS,),
        ),
        (
            "reduce_mean",
            lambda mb, a: mb.reduce_mean(x=a, axes=[2, 3], keep_dims=True),
            IMAGE.mean((2, 3), keepdim=True),
            (IMAGE,),
        ),
        (
            "reduce_l2_norm",
            lambda mb, a: mb.reduce_l2_norm(x=a, axes=[-1], keep_dims=True),
            ROWS.norm(dim=1, keepdim=True),
            (ROWS,),
        ),
        ("transpose", lambda mb, a: mb.transpose(x=a, perm=[0, 2, 3, 1]), IMAGE.permute(0, 2, 3, 1), (IMAGE,)),
        ("reshape", lambda mb, a: mb.reshape(x=a, shape=[2, -1, 10]), IMAGE.reshape(2, -1, 10), (IMAGE,)),
        ("expand_dims", lambda mb, a: mb.expand_dims(x=a, axes=[0, 2]), ROWS[None, :, None], (ROWS,)),
        ("tile", lambda mb, a: mb.tile(x=a, reps=[2, 1]), ROWS.repeat(2, 1), (ROWS,)),
        ("concat", lambda mb, a, b: mb.concat(values=[a, b], axis=0), torch.cat([ROWS, MATRIX]), (ROWS, MATRIX)),
        (
            "slice_by_index",
            lambda mb, a: mb.slice_by_index(
                x=a,
                begin=[0, 1, 2, 0],
                end=[0, 3, 0, -1],
                begin_mask=[False, False, False, True],
                end_mask=[False, False, True, False],
                squeeze_mask=[True, False, False, False],
            ),
            IMAGE[0, 1:3, 2:, :-1],
            (IMAGE,),
        ),
        (
            "slice_by_index, plain",
            lambda mb, a: mb.slice_by_index(x=a, begin=[1, 2], end=[3, 6]),
            ROWS[1:3, 2:6],
            (ROWS,),
        ),
        (
            "gather",
            lambda mb, a: mb.gather(x=a, indices=INDEX.numpy(), axis=1, **PLAIN),
            ROWS[:, INDEX.long()],
            (ROWS,),
        ),
        (
            "gather_along_axis",
            lambda mb, a: mb.gather_along_axis(x=a, indices=INDEX.numpy(), axis=0, validate_indices=False),
            torch.gather(ROWS[:, :2], 0, INDEX.long()),
            (ROWS[:, :2],),
        ),
        (
            "greater_equal and select",
            lambda mb, a: mb.select(cond=mb.greater_equal(x=a, y=np.float32(0)), a=a, b=mb.mul(x=a, y=a)),
            torch.where(ROWS >= 0, ROWS, ROWS * ROWS),
            (ROWS,),
        ),
        ("equal", lambda mb, a, b: mb.equal(x=a, y=b), TOKENS.flip(1) == TOKENS, (TOKENS, TOKENS.flip(1))),
        ("shape", lambda mb, a: mb.shape(x=a), torch.tensor([3, 7], dtype=torch.int32), (ROWS,)),
        (
            "numbers put together",
            lambda mb, a: mb.concat(values=[np.int32(4), mb.gather(x=a, indices=1, axis=0, **PLAIN)], axis=0),
            torch.tensor([4, 40000], dtype=torch.int32),
            (TOKENS[0],),
        ),
        ("cast", lambda mb, a: mb.cast(x=a, dtype="int32"), ROWS.to(torch.int32), (ROWS,)),
        (
            "constexpr_affine_dequantize",
            lambda mb, a: mb.linear(
                x=a,
                weight=mb.constexpr_affine_dequantize(
                    quantized_data=np.arange(-17, 18, dtype=np.int8).reshape(5, 7),
                    zero_point=np.array([0, 1, -2, 0, 0], dtype=np.int8),
                    scale=np.array([0.5, 1, 2, 0.25, 3], dtype=np.float32),
                    axis=0,
                ),
            ),
            ROWS
            @ (
                (torch.arange(-17, 18).reshape(5, 7) - torch.tensor([0, 1, -2, 0, 0])[:, None])
                * torch.tensor([0.5, 1, 2, 0.25, 3])[:, None]
            ).T,
            (ROWS,),
        ),
        (
            "quantize and dequantize",
            lambda mb, a: mb.dequantize(
                input=mb.quantize(input=a, scale=np.float32(0.01), zero_point=np.int8(5), output_dtype="int8"),
                scale=np.float32(0.01),
                zero_point=np.int8(5),
            ),
            torch.fake_quantize_per_tensor_affine(ROWS, 0.01, 5, -128, 127),
            (ROWS,),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_operation(name, build, expected, inputs):
    check(build, expected, *inputs)


def test_tokens_beyond_16_bits():
    check(lambda mb, a: mb.reduce_argmax(x=a, axis=1, keep_dims=False), torch.tensor([1, 2]).int(), TOKENS)
    table = np.arange(40_100, dtype=np.float32)
    check(lambda mb, a: mb.gather(x=table, indices=a, axis=0, **PLAIN), TOKENS.float(), TOKENS)


def test_integers_are_divided_to_integers():
    numbers, divisor = torch.tensor([7, -7]).int(), torch.tensor([2, 2]).int()
    check(lambda mb, a, b: mb.real_div(x=a, y=b), torch.tensor([3, -3]).int(), numbers, divisor)


def test_half_precision_is_rounded_to_after_each_operation():
    """`(a * 3 + 1000) - 1000` loses what float16 cannot hold beside 1000, and overflows where it does."""

    def build(mb, a):
        half = mb.cast(x=a, dtype="fp16")
        sum_ = mb.add(x=mb.mul(x=half, y=np.float16(3)), y=np.float16(1000))
        return mb.cast(x=mb.sub(x=sum_, y=np.float16(1000)), dtype="fp32")

    values = torch.tensor([0.1, 0.37, 30_000.0])
    expected = ((values.half() * 3 + 1000) - 1000).float()
    assert expected[2].isinf()
    assert abs(float(expected[0]) - 0.3) > 0.01
    check(build, expected, values)


@pytest.mark.parametrize(
    ("build", "error"),
    [
        (lambda mb, a: mb.erf(x=a), ("export.program-holds-operation-known", "erf")),
        (
            lambda mb, a: mb.gelu(x=a, mode="TANH_APPROXIMATION"),
            ("export.program-holds-gelu-form", "TANH_APPROXIMATION"),
        ),
        (
            lambda mb, a: mb.concat(values=[a, a], axis=1, interleave=True),
            ("export.program-interleaves-channels-known",),
        ),
        (
            lambda mb, a: mb.slice_by_index(x=a, begin=[0, 0, 0, 0], end=[2, 4, 6, 5], stride=[1, 1, 2, 1]),
            ("export.program-holds-form-known",),
        ),
        (lambda mb, a: mb.layer_norm(x=a, axes=[2, 3], epsilon=np.float32(0.1)), ("export.program-holds-form-known",)),
        (
            lambda mb, a: mb.conv(x=a, weight=KERNEL.numpy(), pad_type="same", groups=2),
            ("export.program-pads-known-run", "same"),
        ),
    ],
)
def test_what_is_not_known_is_refused(build, error):
    with fails(*error):
        program(build, IMAGE).run({"a": IMAGE})


def test_what_is_no_program_is_refused(tmp_path):
    with fails("export.read-core-ml-package"):
        read_program(tmp_path / "missing.mlpackage")


class Held(TorchDispatchMode):
    """Counts the values that are alive at once."""

    def __init__(self):
        super().__init__()
        self._values, self.most = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        value = function(*args, **(kwargs or {}))
        self._values.append(weakref.ref(value))
        self.most = max(self.most, sum(one() is not None for one in self._values))
        return value


def test_what_is_of_no_use_any_more_is_not_held():
    def after_each_other(mb, a):
        for _ in range(20):
            a = mb.relu(x=a)
        return a

    def all_together(mb, a):
        return mb.concat(values=[mb.relu(x=a) for _ in range(20)], axis=0)

    check(after_each_other, ROWS.relu(), ROWS)
    made = program(after_each_other, ROWS), program(all_together, ROWS)
    with Held() as chain:
        made[0].run({"a": ROWS})
    with Held() as rows:
        made[1].run({"a": ROWS})
    assert chain.most <= 4
    assert rows.most > 20
