"""Models of this library inside CLIP_benchmark, for those who compare with numbers that it gave.

    python -m mobileclip.evaluation.clip_benchmark eval --model_type mobileclip --model mobileclip_s0 \
        --pretrained mobileclip_s0.pt --dataset wds/vtab/pets --dataset_root 'data/wds_{dataset_cleaned}_test' --no_amp

Everything behind `clip_benchmark` is its own command line. It has no entry points; kinds of models are a dictionary and
a list of names, which `register` extends.

Source: clip_benchmark/models/__init__.py of CLIP_benchmark 1.6.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mobileclip.extras import needed

if TYPE_CHECKING:
    from mobileclip.data import ImageTransform, Tokenizer
    from mobileclip.encoders import DualEncoder

MODEL_TYPE = "mobileclip"


def load_mobileclip(
    model_name: str,
    pretrained: str,
    cache_dir: str | None = None,
    device: str | torch.device = "cpu",
) -> tuple[DualEncoder, ImageTransform, Tokenizer]:
    """Return a model, folded, with its own transform and tokenizer, as CLIP_benchmark asks for them.

    Args:
        model_name: as `mobileclip.load` takes it, or `auto` for what the checkpoint says it is.
        pretrained: the checkpoint: a file in any known layout, or `hf-hub:owner/name`.
        cache_dir: here because CLIP_benchmark passes it; nothing but None.
        device: where to.

    Raises:
        ValueError: if the name is unknown, or a folder for downloads is given.
        CheckpointError: if the file does not fit the model.
        FileNotFoundError: if there is no such file.
    """
    from mobileclip.inference.loading import load

    if cache_dir is not None:
        raise ValueError(
            f"--model_cache_dir {cache_dir}: files from the hub go where HF_HOME says; set it and leave the option out"
        )
    clip = load(None if model_name == "auto" else model_name, pretrained, device=device)
    return clip.model, clip.transform, clip.tokenizer


def register() -> None:
    """Let CLIP_benchmark load our models as `--model_type mobileclip`; again is no error.

    Its accuracies are also kept working: 1.6.2 takes `float` of arrays of one number, which NumPy refuses from 2.4 on.

    Raises:
        ImportError: if it is not installed.
    """
    with needed("a model in CLIP_benchmark", "clip-benchmark"):
        from clip_benchmark import models
        from clip_benchmark.metrics import zeroshot_classification
    models.TYPE2FUNC[MODEL_TYPE] = load_mobileclip
    if MODEL_TYPE not in models.MODEL_TYPES:
        models.MODEL_TYPES.append(MODEL_TYPE)
    zeroshot_classification.float = _float


def _float(value: Any) -> float:
    """Return what `float` returned of arrays of one number, and returns of everything else."""
    return float(value.item() if isinstance(value, np.ndarray) else value)


def main() -> None:
    """Run CLIP_benchmark's own command line with our models registered."""
    register()
    from clip_benchmark.cli import main as run

    run()


if __name__ == "__main__":
    main()
