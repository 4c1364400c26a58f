from .combining import combine as combine
from .explaining import attribution as attribution
from .forms import by_length as by_length, prepared as prepared, prepared_tower as prepared_tower
from .identity import ModelIdentity as ModelIdentity
from .kept_texts import KeptTexts as KeptTexts
from .layers import is_grouped as is_grouped, weighted_layers as weighted_layers
from .loading import space_of as space_of
from .modes import evaluating as evaluating
from .optimization.optimizing import (
    OptimizedDualEncoder as OptimizedDualEncoder,
    optimize as optimize,
    optimize_images as optimize_images,
    optimize_tower as optimize_tower,
    processor as processor,
)
from .optimization.report import (
    OptimizationReport as OptimizationReport,
    TowerReport as TowerReport,
    Trial as Trial,
)
from .optimization.towers import Engine as Engine, Form as Form, OptimizedTower as OptimizedTower
from .pruning import Pruned as Pruned, prune_vocabulary as prune_vocabulary
from .quantizing import QuantizationReport as QuantizationReport, QuantizationSpec as QuantizationSpec
from .text_files import keep_on_disk as keep_on_disk
