"""The image tower of any checkpoint as the backbone of a classifier."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from mobileclip.encoders.checkpoints.forms import tensor_shapes
from mobileclip.encoders.checkpoints.layouts import ModelSpec
from mobileclip.encoders.checkpoints.loading import Stored, difference, read_checkpoint
from mobileclip.encoders.checkpoints.published import PRETRAINED
from mobileclip.encoders.classifier import Classifier
from mobileclip.encoders.families import ImageEncoderSpec, as_trained, image_spec
from mobileclip.tensor_files import CheckpointError


def load_backbone(classifier: Classifier, checkpoint: str | Path, model: str | ModelSpec | None = None) -> None:
    """Give a classifier the image tower of a checkpoint, in training form; its head stays as it is.

    The last projection is left out where the classifier's encoder is without, and positions of a ViT are interpolated
    to its image size. In everything else that trained weights are used by, both encoders must be equal: drop path and
    the initial layer scale may differ.

    Args:
        classifier: changed in place.
        checkpoint: an image-text model, an image tower or another classifier: a file in any known layout, a repository
            on the hub (`hf-hub:owner/name`), or the name of a model with published weights (`mobileclip_s0`).
        model: the name or spec of what the file holds, where it cannot be found from the file.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is damaged, folded, or holds another image tower.
        ValueError: if a name is unknown.

    Examples:
        >>> image = MCiSpec(stages=(StageSpec(dim=8, depth=1),), embedding_dim=4)
        >>> save_model(image.build(), "tower.safetensors")
        >>> classifier = ClassifierSpec(image=image.without_projection(), num_classes=3).build()
        >>> load_backbone(classifier, "tower.safetensors")
        >>> tower = load_model("tower.safetensors", fold=False)
        >>> all(torch.equal(*pair) for pair in zip(classifier.image_encoder.stem.parameters(), tower.stem.parameters()))
        True
    """
    is_name = str(checkpoint) in PRETRAINED and not Path(checkpoint).exists()
    file = PRETRAINED[str(checkpoint)] if is_name else checkpoint
    encoder = classifier.image_encoder
    wanted = image_spec(encoder)
    stored = read_checkpoint(file, model, tower="image", to_train=True).of_size(image_size=wanted.input.size)
    # It copies, to the encoder's own dtypes.
    encoder.load_state_dict(_fitted(stored, wanted, checkpoint))


def _fitted(stored: Stored, wanted: ImageEncoderSpec, checkpoint: str | Path) -> dict[str, Tensor]:
    """Return what a checkpoint holds as the weights of another encoder, or refuse it."""
    spec, tensors = stored.spec, stored.tensors
    assert isinstance(spec, ImageEncoderSpec), "an image tower was asked for"
    if _bare(wanted) == wanted:
        spec = _bare(spec) or spec
        tensors = {name: tensors[name] for name in tensor_shapes(spec, "training")}
    if as_trained(spec) != as_trained(wanted):
        raise CheckpointError(
            f"{checkpoint} holds another image tower than the classifier's: "
            f"{difference(as_trained(spec), as_trained(wanted))}; build the classifier of the tower that the file "
            "holds, which `mobileclip info` shows"
        )
    return tensors


def _bare(spec: ImageEncoderSpec) -> ImageEncoderSpec | None:
    """Return an encoder's form without its last projection, where it has one."""
    try:
        return spec.without_projection()
    except ValueError:
        return None
