"""Exports models to other runtimes, with contract, tokenizer, test vectors and a report.

What holds for every format belongs here; what one format alone needs, in `export.targets`.
"""

import lazy_loader

__getattr__, __dir__, _ = lazy_loader.attach_stub(__name__, __file__)
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
