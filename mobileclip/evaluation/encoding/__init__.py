"""Encodes the images and texts of a data set as fast as the machine can.

How they are batched, and on what they are computed, is decided here; what they are worth, in `evaluation.metrics`.
"""

from mobileclip.evaluation.encoding.batch_size import (
    find_batch_size as find_batch_size,
    fitting as fitting,
    free_memory as free_memory,
)
from mobileclip.evaluation.encoding.features import Features as Features, num_images as num_images
from mobileclip.evaluation.encoding.timing import (
    Latency as Latency,
    Source as Source,
    machine_name as machine_name,
    measure_latency as measure_latency,
)
