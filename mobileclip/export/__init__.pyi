from .contract import (
    Contract as Contract,
    FeatureMap as FeatureMap,
    ImageContract as ImageContract,
    TextContract as TextContract,
    TowerFile as TowerFile,
    read_contract as read_contract,
)
from .export import Samples as Samples, bundled_samples as bundled_samples, export_model as export_model
from .layouts import Layout as Layout, layouts as layouts
from .running import load_export as load_export
from .spec import ExportSpec as ExportSpec, Preset as Preset, presets as presets
from .targets import Target as Target, targets as targets
from .verify import (
    Check as Check,
    Ranking as Ranking,
    Report as Report,
    TowerParity as TowerParity,
    read_report as read_report,
    verify_export as verify_export,
)
