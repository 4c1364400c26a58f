from .int8 import (
    Calibration as Calibration,
    Int8Model as Int8Model,
    TunedInt8Model as TunedInt8Model,
    calibrations as calibrations,
)
from .openvino_int8 import (
    in_int8 as in_int8,
    quantiser as quantiser,
)
from .openvino_quiet import (
    PROCESSOR_OPTIONS as PROCESSOR_OPTIONS,
    converted as converted,
    import_quietly as import_quietly,
    openvino_core as openvino_core,
    openvino_model as openvino_model,
)
from .optimizing import (
    ENGINES as ENGINES,
    OptimizedDualEncoder as OptimizedDualEncoder,
    optimize as optimize,
    optimize_images as optimize_images,
    optimize_tower as optimize_tower,
    processor as processor,
)
from .programs import openvino_program as openvino_program
from .report import OptimizationReport as OptimizationReport, TowerReport as TowerReport, Trial as Trial
from .towers import Engine as Engine, Form as Form, OptimizedTower as OptimizedTower
