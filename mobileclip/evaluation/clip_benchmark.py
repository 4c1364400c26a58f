"""Runs models of this library in CLIP_benchmark, for comparison with existing CLIP_benchmark results.

    python -m mobileclip.evaluation.clip_benchmark eval --model_type mobileclip --model mobileclip_s0 \
        --pretrained mobileclip_s0.pt --dataset wds/vtab/pets --dataset_root 'data/wds_{dataset_cleaned}_test' --no_amp

The arguments after `mobileclip.evaluation.clip_benchmark` are passed to CLIP_benchmark's own command line.
CLIP_benchmark has no entry points for plugins: it keeps its model types in a dictionary and a list of names, and
`register` extends both.

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
    """Return a folded model with its transform and tokenizer, in the form that CLIP_benchmark expects.

    Args:
        model_name: a model name for `mobileclip.load`, or `auto` to detect the model from the checkpoint.
        pretrained: checkpoint file in any supported layout, or `hf-hub:owner/name`.
        cache_dir: must be None; the argument exists because CLIP_benchmark passes it.
        device: device that runs the model.

    Raises:
        ValueError: if the model name is unknown, or `cache_dir` is not None.
        CheckpointError: if the checkpoint does not match the model.
        FileNotFoundError: if the checkpoint file does not exist.
    """
    from mobileclip.inference.loading import load

    if cache_dir is not None:
        raise ValueError(
            f"--model_cache_dir {cache_dir} is not supported: hub downloads go to the folder in HF_HOME; "
            "set HF_HOME instead"
        )
    clip = load(None if model_name == "auto" else model_name, pretrained, device=device)
    return clip.model, clip.transform, clip.tokenizer


def register() -> None:
    """Add this library's models to CLIP_benchmark as `--model_type mobileclip`; repeated calls are allowed.

    Also replace `float` in CLIP_benchmark's accuracy code: CLIP_benchmark 1.6.2 calls `float` on arrays with one
    element, and NumPy 2.4 and later then raise an error.

    Raises:
        ImportError: if CLIP_benchmark is not installed.
    """
    with needed("a model in CLIP_benchmark", "clip-benchmark"):
        from clip_benchmark import models
        from clip_benchmark.metrics import zeroshot_classification
    models.TYPE2FUNC[MODEL_TYPE] = load_mobileclip
    if MODEL_TYPE not in models.MODEL_TYPES:
        models.MODEL_TYPES.append(MODEL_TYPE)
    zeroshot_classification.float = _float


def _float(value: Any) -> float:
    """Convert a number, or an array with one element, to float."""
    return float(value.item() if isinstance(value, np.ndarray) else value)


def main() -> None:
    """Run CLIP_benchmark's own command line with this library's models registered."""
    register()
    from clip_benchmark.cli import main as run

    run()


if __name__ == "__main__":
    main()
