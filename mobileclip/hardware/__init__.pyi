from .devices import (
    AUTO as AUTO,
    all_devices as all_devices,
    has_float64 as has_float64,
    in_float64 as in_float64,
    pick_device as pick_device,
)
from .precision import (
    FAST_PRECISIONS as FAST_PRECISIONS,
    PRECISIONS as PRECISIONS,
    WIDE_PRECISIONS as WIDE_PRECISIONS,
    FastPrecision as FastPrecision,
    Precision as Precision,
    StoredPrecision as StoredPrecision,
    WidePrecision as WidePrecision,
    dtype_of as dtype_of,
)
from .threads import threads_or_default as threads_or_default, torch_threads as torch_threads
