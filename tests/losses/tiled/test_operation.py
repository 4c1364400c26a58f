"""The operation that `torch.compile` sees, against PyTorch's own checks of what an operation promises."""

import pytest
import torch

from tests.losses.embeddings import SPECS, operation_arguments, random_batch


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_shapes_and_dtypes_are_those_that_the_compiler_is_told(spec, dtype):
    inputs = {name: value.detach() for name, value in random_batch(spec, 5, dtype=dtype).items()}
    arguments = operation_arguments(spec, inputs)
    for gradients in (True, False):
        arguments[-1] = gradients
        torch.library.opcheck(
            torch.ops.mobileclip.pair_terms.default, tuple(arguments), test_utils=("test_schema", "test_faketensor")
        )
