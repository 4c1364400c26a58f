"""Tries forms of a tower, times them, checks their embeddings, and keeps the fastest.

What makes one, in PyTorch, by its compiler or in OpenVINO, belongs here; how two forms are compared belongs in
`comparison`.
"""

from mobileclip.inference.optimization.int8 import (
    Calibration as Calibration,
    Int8Model as Int8Model,
    TunedInt8Model as TunedInt8Model,
    calibrations as calibrations,
)
from mobileclip.inference.optimization.openvino_int8 import in_int8 as in_int8, quantiser as quantiser
from mobileclip.inference.optimization.openvino_quiet import (
    PROCESSOR_OPTIONS as PROCESSOR_OPTIONS,
    converted as converted,
    import_quietly as import_quietly,
    openvino_core as openvino_core,
    openvino_model as openvino_model,
)
from mobileclip.inference.optimization.optimizing import (
    ENGINES as ENGINES,
    OptimizedDualEncoder as OptimizedDualEncoder,
    optimize as optimize,
    optimize_images as optimize_images,
    optimize_tower as optimize_tower,
    processor as processor,
)
from mobileclip.inference.optimization.programs import openvino_program as openvino_program
from mobileclip.inference.optimization.report import (
    OptimizationReport as OptimizationReport,
    TowerReport as TowerReport,
    Trial as Trial,
)
from mobileclip.inference.optimization.towers import Engine as Engine, Form as Form, OptimizedTower as OptimizedTower
