"""What runs in the environment of LiteRT's converter: from programs of `torch.export` to one file.

    PYTHON -I converter.py programs/ tower.tflite [int8]

It imports nothing of this library, which is not in that environment.
"""

from __future__ import annotations

import sys
from pathlib import Path


def convert(programs: str, path: str, precision: str = "float32") -> None:
    """Write programs as signatures of one file, which share their weights; inputs and outputs keep their names.

    Args:
        programs: a folder of `NAME.pt2`, a signature's name each, of `torch.export.save`, called with inputs by name,
            and giving outputs by name.
        path: of the file to write.
        precision: `int8` where the programs quantise, so that operations between are computed in int8.
    """
    import torch
    import torch.ao.quantization.fx._decomposed
    from litert_torch import Converter
    from litert_torch.quantize import pt2e_quantizer, quant_config

    config = None
    if precision == "int8":
        # It quantises nothing here, and says that the programs do.
        quantizer = pt2e_quantizer.PT2EQuantizer()
        quantizer.set_global(pt2e_quantizer.get_symmetric_quantization_config(is_per_channel=True))
        config = quant_config.QuantConfig(pt2e_quantizer=quantizer)
    converter = Converter()
    for file in sorted(Path(programs).glob("*.pt2"), reverse=True):
        loaded = torch.export.load(file)
        converter.signature(file.stem, loaded.module(), sample_kwargs=loaded.example_inputs[1])
    converter.convert(quant_config=config).export(path)


if __name__ == "__main__":
    convert(*sys.argv[1:])
