"""Data sets to evaluate on: images with labels or captions, on disk, on the web or in a bucket.

What finds, reads and writes them belongs here; what a model is asked about them, in `evaluation.tasks`.
"""

from mobileclip.evaluation.datasets.benchmark import (
    Benchmark as Benchmark,
    BenchmarkSample as BenchmarkSample,
    benchmark_name as benchmark_name,
    open_benchmark as open_benchmark,
    require_different_names as require_different_names,
)
from mobileclip.evaluation.datasets.benchmark_writer import write_benchmark as write_benchmark
from mobileclip.evaluation.datasets.content import (
    fingerprint as fingerprint,
    folder_content as folder_content,
    hash_of as hash_of,
)
from mobileclip.evaluation.datasets.metadata import (
    FIELDS as FIELDS,
    OVER_GROUPS as OVER_GROUPS,
    metadata_fields as metadata_fields,
    needs_metadata as needs_metadata,
    parse_metadata as parse_metadata,
)
