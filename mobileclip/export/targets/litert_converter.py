"""Script for the environment of LiteRT's converter; converts `torch.export` programs to one `.tflite` file.

    PYTHON -I converter.py programs/ tower.tflite [int8]

The script does not import mobileclip, because the converter's environment does not contain mobileclip.
"""

from __future__ import annotations

import sys
from pathlib import Path


def convert(programs: str, path: str, precision: str = "float32") -> None:
    """Write programs as signatures of one file, with shared weights; the file keeps the names of inputs and outputs.

    Args:
        programs: folder of `torch.export.save` files `NAME.pt2`, one for each signature NAME. The programs take named
            inputs and return named outputs.
        path: path of the file to write.
        precision: `int8` for quantised programs, so that the operations between quantised layers also compute in int8.
    """
    import torch
    import torch.ao.quantization.fx._decomposed
    from litert_torch import Converter
    from litert_torch.quantize import pt2e_quantizer, quant_config

    config = None
    if precision == "int8":
        # The quantiser changes nothing here; it only declares that the programs are quantised.
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
