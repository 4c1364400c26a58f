from .batch_size import find_batch_size as find_batch_size, fitting as fitting, free_memory as free_memory
from .features import Features as Features, num_images as num_images
from .timing import (
    Latency as Latency,
    Source as Source,
    machine_name as machine_name,
    measure_latency as measure_latency,
)
