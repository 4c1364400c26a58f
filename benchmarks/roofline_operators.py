"""The operators of a tower by kind: what they take, as the runtime's profiler has it, and what they compute."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.latency_exported import exported
from benchmarks.runtime_forms import Contestant
from mobileclip.inference.optimization import PROCESSOR_OPTIONS, openvino_core, openvino_model

Form = Literal["eager", "onnxruntime", "openvino", "openvino_bf16", "openvino_int8", "openvino_tuned"]
KINDS = (
    "dense convolutions",
    "depthwise convolutions",
    "linear layers",
    "attention",
    "norms",
    "activations and sums",
    "rounding",
    "layout",
    "other",
)
# By how an operator's name begins, in any runtime, in small letters and without `aten::`.
_BEGINNINGS = {
    "linear layers": ("fullyconnected", "gemm", "addmm", "mm", "linear", "mkldnn_linear", "biasgemm", "fusedgemm"),
    "attention": ("scaleddot", "_scaled_dot", "softmax", "_softmax", "bmm", "baddbmm", "powerstatic"),
    "norms": ("mvn", "layernorm", "native_layer_norm", "layer_norm", "skiplayernorm", "norm"),
    "activations and sums": (
        *("gelu", "biasgelu", "quickgelu", "relu", "sigmoid", "add", "mul", "sub", "div", "reducemean", "mean", "sum"),
        *("eltwise", "subgraph"),
    ),
    "rounding": ("fakequantize", "quantize", "dequantize"),
    "layout": (
        *("reorder", "transpose", "reshape", "concat", "cat", "split", "squeeze", "unsqueeze", "expand", "broadcast"),
        *("convert", "cast", "copy_", "clone", "contiguous", "permute", "view", "slice", "stack", "to", "_to_copy"),
        *("empty", "as_strided", "t", "flatten", "resize_", "select", "unbind", "narrow", "_reshape_alias", "pad"),
    ),
}
# What calls another operator of PyTorch, and does nothing else.
_CALLERS = ("conv2d", "convolution", "_convolution", "linear", "matmul", "scaled_dot_product_attention")
_OV_HINTS = {"openvino_bf16": "bf16"}


@attrs.frozen
class Work:
    """What operators compute.

    Args:
        operations: two for each multiplication.
        num_bytes: that go in and come out.
    """

    operations: int = 0
    num_bytes: int = 0

    def __add__(self, other: Work) -> Work:
        """Return the sum."""
        return Work(self.operations + other.operations, self.num_bytes + other.num_bytes)


@attrs.frozen(kw_only=True)
class Profile:
    """What a call takes.

    Args:
        call_ms: the least of the whole call.
        kinds: of each kind of operator, how many there are and the sum of the least milliseconds of each.
    """

    call_ms: float
    kinds: Mapping[str, tuple[int, float]]


def kind_of(name: str, weight: Sequence[int] = (), rank: int = 0) -> str:
    """Return the kind of an operator.

    Args:
        name: in the runtime.
        weight: shape of a convolution's weight, where the name does not say that it is depthwise.
        rank: of a product's first factor; those of attention have heads beside tokens, or several products in a batch.
    """
    short = name.removeprefix("aten::").lower()
    if "conv" in short and not short.startswith("convert"):
        depthwise = short.startswith("group") or (len(weight) == 4 and weight[1] == 1)
        return "depthwise convolutions" if depthwise else "dense convolutions"
    if "matmul" in short:
        return "attention" if rank not in {2, 3} else "linear layers"
    for kind, beginnings in _BEGINNINGS.items():
        if short in beginnings or any(len(one) > 2 and short.startswith(one) for one in beginnings):
            return kind
    return "other"


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what PyTorch's operators compute."""

    def __init__(self, item_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.item_size = item_size
        self.found: dict[str, Work] = defaultdict(Work)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            tensors = [one for one in tree_leaves((args, kwargs, out)) if isinstance(one, Tensor)]
            weight = tuple(args[1].shape) if "conv" in str(func) else ()
            kind = kind_of(str(func.overloadpacket).removeprefix("aten."), weight)
            work = Work(count(*args, **(kwargs or {}), out_val=out), self.item_size * sum(map(Tensor.numel, tensors)))
            self.found[kind] += work
        return out


def work_of(tower: nn.Module, inputs: Tensor, *, item_size: int) -> dict[str, Work]:
    """Return what each kind of operator computes that multiplies by weights, or is of attention.

    Args:
        tower: eager.
        inputs: a batch.
        item_size: bytes of a number.
    """
    with torch.no_grad(), _Counting(item_size) as counting:
        tower(inputs)
    return dict(counting.found)


def profiled(side: Contestant, form: Form, inputs: Tensor, ranges: Tensor, folder: Path, *, rounds: int) -> Profile:
    """Return what a side's tower takes in a form, with as many threads as PyTorch has.

    Args:
        side: whose.
        form: which.
        inputs: a batch.
        ranges: what ranges of int8 are found with.
        folder: of what is exported.
        rounds: calls.
    """
    if form == "eager":
        return _of_torch(side, inputs, rounds)
    if form == "onnxruntime":
        return _of_onnxruntime(side, inputs, folder, rounds)
    return _of_openvino(side, form, inputs, ranges, rounds)


def _of_torch(side: Contestant, inputs: Tensor, rounds: int) -> Profile:
    from torch.profiler import ProfilerActivity, profile

    tower = side.computed
    if inputs.is_floating_point():
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    whole = least_seconds(lambda: tower(inputs), rounds=rounds)
    seen: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(rounds):
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
            tower(inputs)
        place = 0
        for event in recorded.events():
            weight = event.input_shapes[1] if len(event.input_shapes) > 1 else ()
            if event.name.startswith("aten::") and event.name.removeprefix("aten::") not in _CALLERS:
                seen[kind_of(event.name, weight), str(place)].append(1e-3 * event.self_cpu_time_total)
                place += 1
    return Profile(call_ms=1e3 * whole, kinds=_summed((kind, times) for (kind, _), times in seen.items()))


def _of_onnxruntime(side: Contestant, inputs: Tensor, folder: Path, rounds: int) -> Profile:
    import onnxruntime

    exported(side.mine, side.tower, "onnxruntime", batch_size=len(inputs), rival=None, folder=folder / "export")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    path = folder / "export" / f"{side.tower}.onnx"
    quiet = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {quiet.get_inputs()[0].name: inputs.numpy()}
    whole = least_seconds(lambda: quiet.run(None, given), rounds=rounds)
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for _ in range(rounds + 1):
        session.run(None, given)
    seen: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            shapes = [next(iter(one.values()), ()) for one in event["args"].get("input_type_shape", [])]
            weight = shapes[1] if len(shapes) > 1 else ()
            kind = kind_of(event["args"]["op_name"], weight, rank=len(shapes[0]) if shapes else 0)
            seen[kind, event["name"]].append(1e-3 * event["dur"])
    return Profile(call_ms=1e3 * whole, kinds=_summed((kind, times) for (kind, _), times in seen.items()))


def _of_openvino(side: Contestant, form: Form, inputs: Tensor, ranges: Tensor, rounds: int) -> Profile:
    int8 = side.int8_model(form, ranges, lengths=False)
    model = openvino_model(side.computed, inputs, lengths=False) if int8 is None else int8.model
    model.reshape(list(inputs.shape))
    options = {
        "INFERENCE_PRECISION_HINT": _OV_HINTS.get(form, "f32"),
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        **PROCESSOR_OPTIONS,
    }
    quiet = openvino_core().compile_model(model, "CPU", options).create_infer_request()
    whole = least_seconds(lambda: quiet.infer([inputs.numpy()], share_inputs=True), rounds=rounds)
    request = openvino_core().compile_model(model, "CPU", {**options, "PERF_COUNT": True}).create_infer_request()
    seen: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(rounds + 1):
        request.infer([inputs.numpy()], share_inputs=True)
        for one in request.get_profiling_info():
            if one.status == one.Status.EXECUTED:
                seen[kind_of(one.node_type), one.node_name].append(1e3 * one.real_time.total_seconds())
    return Profile(call_ms=1e3 * whole, kinds=_summed((kind, times) for (kind, _), times in seen.items()))


def _summed(operators: Iterator[tuple[str, list[float]]]) -> dict[str, tuple[int, float]]:
    found: dict[str, tuple[int, float]] = {}
    for kind, times in operators:
        calls, ms = found.get(kind, (0, 0.0))
        found[kind] = calls + 1, ms + min(times)
    return found


def least_seconds(call: Callable[[], object], *, rounds: int) -> float:
    """Return the least time of several calls, after one to warm up: the processor's, if one thread computes.

    Other work on the machine lengthens that less. Of several threads, it would count their waiting too.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    call()
    seconds = []
    for _ in range(rounds):
        start = clock()
        call()
        seconds.append(clock() - start)
    return min(seconds)
