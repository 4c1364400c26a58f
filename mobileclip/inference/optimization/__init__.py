"""Tries forms of a tower, times them, checks their embeddings, and keeps the fastest.

What makes one, in PyTorch, by its compiler or in OpenVINO, belongs here; how two forms are compared belongs in
`comparison`.
"""

from mobileclip.inference.optimization.openvino import (
    PROCESSOR_OPTIONS as PROCESSOR_OPTIONS,
    Calibration as Calibration,
    Int8Model as Int8Model,
    TunedInt8Model as TunedInt8Model,
    calibrations as calibrations,
    converted as converted,
    import_quietly as import_quietly,
    in_int8 as in_int8,
    openvino_core as openvino_core,
    openvino_model as openvino_model,
    openvino_program as openvino_program,
    quantiser as quantiser,
)
from mobileclip.inference.optimization.optimizing import (
    ENGINES as ENGINES,
    Engine as Engine,
    Form as Form,
    OptimizationReport as OptimizationReport,
    OptimizedDualEncoder as OptimizedDualEncoder,
    OptimizedTower as OptimizedTower,
    TowerReport as TowerReport,
    Trial as Trial,
    optimize as optimize,
    optimize_images as optimize_images,
    optimize_tower as optimize_tower,
    processor as processor,
)
