"""The ExecuTorch backends, and the operations that each computes."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol

import attrs

from mobileclip.export.spec import Backend
from mobileclip.export.targets.base import NotRunHereError
from mobileclip.export.targets.quiet import quiet
from mobileclip.extras import needed

XNNPACK = "XnnpackBackend"


class Partitioner(Protocol):
    """Makes what ExecuTorch asks which operations a backend takes."""

    def __call__(self, *, half: bool) -> Any:
        """Return it, for a backend that computes in float16 or in float32."""


@attrs.frozen(kw_only=True)
class Lowering:
    """The delegate and the partitioner of an ExecuTorch backend.

    Args:
        delegate: what files call the backend.
        partitioner: says which operations it takes.
    """

    delegate: str
    partitioner: Partitioner


def _xnnpack(*, half: bool) -> Any:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    del half  # the program itself is in float16
    return XnnpackPartitioner()


def _coreml(*, half: bool) -> Any:
    with needed("the backend 'coreml'", "coreml"):
        import coremltools
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    precision = coremltools.precision.FLOAT16 if half else coremltools.precision.FLOAT32
    return CoreMLPartitioner(
        compile_specs=CoreMLBackend.generate_compile_specs(
            minimum_deployment_target=coremltools.target.iOS17, compute_precision=precision
        )
    )


def _vulkan(*, half: bool) -> Any:
    from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

    return VulkanPartitioner({"force_fp16": half})


_LOWERINGS: dict[Backend, Lowering] = {
    "xnnpack": Lowering(delegate=XNNPACK, partitioner=_xnnpack),
    "coreml": Lowering(delegate="CoreMLBackend", partitioner=_coreml),
    "vulkan": Lowering(delegate="VulkanBackend", partitioner=_vulkan),
}


def lowering(backend: Backend | None) -> Lowering:
    """Return how a program is handed over to a backend; XNNPACK by default.

    Raises:
        ValueError: if ExecuTorch's wheel cannot do it.
    """
    found = _LOWERINGS.get(backend or "xnnpack")
    if found is None:
        raise ValueError(
            f"ExecuTorch lowers for {backend} with the tools of its maker, which its wheel has not; export with "
            "--target torch and lower those files with these tools, or choose --set backend=xnnpack, coreml or vulkan"
        )
    return found


def require_runnable(backend: Backend | None, path: str) -> None:
    """Refuse to run a file for a backend that the runtime here has not got.

    Raises:
        NotRunHereError: if it has not; the message has those that it has.
    """
    with quiet():
        registry = import_module("executorch.runtime").Runtime.get().backend_registry
    delegate = lowering(backend).delegate
    if not registry.is_available(delegate):
        raise NotRunHereError(
            f"{path} is written, not run: ExecuTorch here has {', '.join(registry.registered_backend_names)}, and not "
            f"{delegate}; compare the golden vectors beside it on a device, or choose --set backend=xnnpack"
        )
