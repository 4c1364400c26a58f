from .benchmark import (
    Benchmark as Benchmark,
    BenchmarkSample as BenchmarkSample,
    benchmark_name as benchmark_name,
    open_benchmark as open_benchmark,
    require_different_names as require_different_names,
)
from .benchmark_writer import write_benchmark as write_benchmark
from .content import fingerprint as fingerprint, folder_content as folder_content, hash_of as hash_of
from .metadata import (
    FIELDS as FIELDS,
    OVER_GROUPS as OVER_GROUPS,
    metadata_fields as metadata_fields,
    needs_metadata as needs_metadata,
    parse_metadata as parse_metadata,
)
