"""What runs in the environment of LiteRT's converter: from a program of `torch.export` to a file.

    PYTHON -I converter.py tower.pt2 tower.tflite [int8]

It imports nothing of this library, which is not in that environment.
"""

from __future__ import annotations

import sys


def convert(program: str, path: str, precision: str = "float32") -> None:
    """Write a program as LiteRT has it; its inputs and outputs keep their names.

    Args:
        program: of `torch.export.save`, called with inputs by name, and giving outputs by name.
        path: of the file to write.
        precision: `int8` where the program quantises, so that operations between are computed in int8.
    """
    import litert_torch
    import torch
    import torch.ao.quantization.fx._decomposed
    from litert_torch.quantize import pt2e_quantizer, quant_config

    loaded = torch.export.load(program)
    _, named = loaded.example_inputs
    config = None
    if precision == "int8":
        # It quantises nothing here, and says that the program does.
        quantizer = pt2e_quantizer.PT2EQuantizer()
        quantizer.set_global(pt2e_quantizer.get_symmetric_quantization_config(is_per_channel=True))
        config = quant_config.QuantConfig(pt2e_quantizer=quantizer)
    litert_torch.convert(loaded.module(), sample_kwargs=named, quant_config=config).export(path)


if __name__ == "__main__":
    convert(*sys.argv[1:])
