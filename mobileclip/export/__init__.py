"""Models for other runtimes: each export carries its preprocessing, tokenizer, golden vectors and parity report.

What holds for every format belongs here; what one format alone needs, in `export.targets`.
"""

from mobileclip.export.contract import Contract, FeatureMap, ImageContract, TextContract, TowerFile
from mobileclip.export.export import export_model
from mobileclip.export.layouts import Layout, layouts
from mobileclip.export.places import Place, places
from mobileclip.export.reading import read_contract, read_report
from mobileclip.export.running import load_export
from mobileclip.export.spec import ExportSpec
from mobileclip.export.targets import Target, targets
from mobileclip.export.verification.parity import Gate, Ranking, Report, TowerParity
from mobileclip.export.verification.verify import verify_export
from mobileclip.inference.comparison.samples import Samples, bundled_samples

__all__ = [
    "Contract",
    "ExportSpec",
    "FeatureMap",
    "Gate",
    "ImageContract",
    "Layout",
    "Place",
    "Ranking",
    "Report",
    "Samples",
    "Target",
    "TextContract",
    "TowerFile",
    "TowerParity",
    "bundled_samples",
    "export_model",
    "layouts",
    "load_export",
    "places",
    "read_contract",
    "read_report",
    "targets",
    "verify_export",
]
