"""A model together with its own preprocessing: what most people want to type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor, nn

from mobileclip.blocks import image_encoders, models, text_encoders
from mobileclip.encoders import Classifier, DualEncoder, DualEncoderSpec, load_model
from mobileclip.encoders.checkpoints import PREFIX, PRETRAINED, ModelSpec, read_checkpoint, resolve_spec, unpublished
from mobileclip.encoders.checkpoints.exports import is_export
from mobileclip.encoders.checkpoints.hub import local_checkpoint
from mobileclip.extras import VERSION
from mobileclip.hardware.devices import AUTO, pick_device
from mobileclip.inference import by_length, prepared
from mobileclip.inference.identity import ModelIdentity
from mobileclip.progress import Progress
from mobileclip.reparam import reparameterize
from mobileclip.serialization import to_json
from mobileclip.strict import repeated
from mobileclip.tensor_files.weights import weights_sha256
from mobileclip.terminal import console

if TYPE_CHECKING:
    from mobileclip.data.images.transform import ImageSource

Item = TypeVar("Item")

CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
"""How files of weights are usually called."""


class ImageTextModel:
    """An image-text model with the image transform and the tokenizer of its own spec.

    Args:
        model: the dual encoder, in evaluation mode; usually from `mobileclip.load`.

    Raises:
        ValueError: if the model is in training mode, where batch statistics would change with every call.

    Examples:
        >>> image = mobileclip.encoders.ViTSpec(width=16, depth=1, num_heads=2)
        >>> text = mobileclip.encoders.MCtSpec(width=16, depth=0, num_heads=2)
        >>> model = ImageTextModel(mobileclip.encoders.DualEncoderSpec(image=image, text=text).build().eval())
        >>> model.encode_text(["a cat", "two dogs"]).shape
        torch.Size([2, 512])
    """

    def __init__(self, model: DualEncoder) -> None:
        from mobileclip.data.images.transform import ImageTransform
        from mobileclip.data.text.tokenizer import Tokenizer

        if model.training:
            raise ValueError("the model is in training mode; call model.eval() first")
        self.model = model
        self.transform = ImageTransform(model.spec.image.input)
        self.tokenizer = Tokenizer(model.spec.text.input)

    def classify(
        self, image: ImageSource, labels: Sequence[str], *, template: str = "{}", batch_size: int = 64
    ) -> dict[str, float]:
        """Return how probable each label is for an image, the most probable first.

        `softmax(logit_scale * cosine(image, label))` over the labels.

        Args:
            image: a Pillow image, a path, the bytes of a file, or an open file.
            labels: texts to choose among, at least one, no two equal.
            template: the sentence that each label is put into, such as `a photo of a {}`.
            batch_size: texts encoded at once.

        Raises:
            ValueError: if there are no labels, two are equal, or the template has no place for the label.
            ImageError: if the image cannot be read.

        Source: Radford et al., "Learning Transferable Visual Models", section 3.1.
        """
        require_labels(labels, template)
        texts = self.encode_text([template.replace("{}", label) for label in labels], batch_size=batch_size)
        logits = self.model.logit_scale.detach().float().cpu().exp() * self.encode_image([image]) @ texts.T
        probabilities = logits[0].softmax(-1).tolist()
        return dict(sorted(zip(labels, probabilities, strict=True), key=lambda pair: -pair[1]))

    def encode_image(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        normalize: bool = True,
        batch_size: int = 32,
        progress: bool = False,
    ) -> Tensor:
        """Return the embeddings of one image or several.

        Shape:
            B images to `(B, embedding_dim)`, float32 on the CPU; one image counts as B = 1.

        Args:
            images: Pillow images, paths, bytes of files or open files; they are read batch by batch.
            normalize: whether embeddings are scaled to unit length.
            batch_size: images encoded at once.
            progress: whether to show a bar with the rate and the time left.

        Raises:
            ImageError: if an image cannot be read; the message names it.
        """
        several = list(images) if isinstance(images, Sequence) and not isinstance(images, (str, bytes)) else [images]
        ready = prepared(self.model)

        def encode(batch: Sequence[object]) -> Tensor:
            sources = cast("Sequence[ImageSource]", batch)
            pixels = torch.stack([self._read(source) for source in sources]).to(self._like)
            return ready.encode_image(pixels, normalize=normalize)

        return self._in_batches(several, encode, batch_size=batch_size, unit="images", progress=progress)

    def _read(self, source: ImageSource) -> Tensor:
        return self.transform.normalize(self.transform.read_pixels(source))

    def encode_text(
        self, texts: str | Sequence[str], *, normalize: bool = True, batch_size: int = 64, progress: bool = False
    ) -> Tensor:
        """Return the embeddings of one text or several.

        Shape:
            B texts to `(B, embedding_dim)`, float32 on the CPU; one text counts as B = 1.

        Args:
            texts: in any language, though the published models know English best; cut at the context length.
            normalize: whether embeddings are scaled to unit length.
            batch_size: texts encoded at once.
            progress: whether to show a bar with the rate and the time left.
        """
        several = [texts] if isinstance(texts, str) else list(texts)
        if not several:
            return torch.zeros(0, self.model.spec.image.embedding_dim)
        tokens = self.tokenizer(several)
        order = by_length(tokens, self.model.spec.text.input)
        ready = prepared(self.model)

        def encode(rows: Sequence[Tensor]) -> Tensor:
            return ready.encode_text(torch.stack(list(rows)).to(self._like.device), normalize=normalize)

        ordered = self._in_batches(
            tokens[order].unbind(), encode, batch_size=batch_size, unit="texts", progress=progress
        )
        return torch.empty_like(ordered).index_copy_(0, order, ordered)

    @property
    def _like(self) -> Tensor:
        return self.model.logit_scale

    @torch.inference_mode()
    def _in_batches(
        self,
        items: Sequence[Item],
        encode: Callable[[Sequence[Item]], Tensor],
        *,
        batch_size: int,
        unit: str,
        progress: bool,
    ) -> Tensor:
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1, not {batch_size}")
        done = []
        with Progress(f"encoding {unit}", total=len(items), unit=unit, console=console(shown=progress)) as bar:
            for start in range(0, len(items), batch_size):
                batch = items[start : start + batch_size]
                done.append(encode(batch).float().cpu())
                bar.advance(len(batch))
        return torch.cat(done) if done else torch.zeros(0, self.model.spec.image.embedding_dim)


def load(
    model: str | Path | DualEncoderSpec | None = None,
    checkpoint: str | Path | None = None,
    *,
    fold: bool = True,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    image_size: int | None = None,
    context_length: int | None = None,
    trust: bool = False,
) -> ImageTextModel:
    """Return a pretrained model, ready to use: folded, in evaluation mode, with its own preprocessing.

    `load("mobileclip_s2", "mobileclip_s2.pt")`, `load("clip.safetensors")`, or `load("mobileclip_s2")`, which fetches
    the published weights from the hub once (they may be used for research only, as their licence says).
    `load("s2_onnx")` takes the folder that `mobileclip export` wrote, and its runtime computes the embeddings.

    Args:
        model: the name or spec of the model. A checkpoint may stand here alone: what it holds is found from the file.
        checkpoint: a file in any known layout, training form or folded; a folder with one such file, which
            `save_pretrained` writes; `hf-hub:owner/name`; or the folder of an export, which has the form, the type and
            the sizes that it was exported with.
        fold: fold branches, norms and scales, which inference wants; without it the training form stays.
        dtype: of the weights.
        device: where to; of an export, `cpu` or what its runtime has here, see `mobileclip.export.load_export`.
        image_size: side of the images, in pixels, where not the model's own; see `mobileclip.encoders.load_model`.
        context_length: ids per text, where fewer than the model's own; see `mobileclip.encoders.load_model`.
        trust: whether whoever made an export may run anything here, which one for ExecuTorch needs.

    Raises:
        ImportError: if an export's runtime is not installed; the message has the command that installs it.
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file does not fit the model, tensor by tensor.
        ValueError: if the name is unknown, or the model cannot have that image size or context length.

    Examples:
        The first two lines fetch weights from the hub, so the tests leave them out.

        >>> clip = mobileclip.load("mobileclip_s2")  # doctest: +SKIP
        >>> probabilities = clip.classify("cat.jpg", ["a cat", "a dog"])  # doctest: +SKIP
        >>> mobileclip.load("mobileclip_s5")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: unknown model 'mobileclip_s5'; did you mean 'mobileclip_s4' or ...
    """
    wanted, found = _found(model, checkpoint)
    if is_export(found):
        return _exported(found, wanted, dtype=dtype, device=device, sizes=(image_size, context_length), trust=trust)
    loaded = load_model(
        found,
        wanted,
        fold=fold,
        dtype=dtype,
        device=device,
        image_size=image_size,
        context_length=context_length,
    )
    return ImageTextModel(_both_towers(loaded, found))


def load_stored(
    model: str | Path | DualEncoderSpec | None = None,
    checkpoint: str | Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    image_size: int | None = None,
    context_length: int | None = None,
    trust: bool = False,
) -> ImageTextModel:
    """Return a pretrained model as `load` does, in the form that it is stored in, whichever that is.

    Args:
        model: see `load`.
        checkpoint: see `load`.
        dtype: of the weights.
        device: where to.
        image_size: see `load`.
        context_length: see `load`.
        trust: see `load`.

    Raises:
        ValueError, FileNotFoundError, CheckpointError: see `load`.
    """
    wanted, found = _found(model, checkpoint)
    if is_export(found):
        return _exported(found, wanted, dtype=dtype, device=device, sizes=(image_size, context_length), trust=trust)
    stored = read_checkpoint(found, wanted).of_size(image_size=image_size, context_length=context_length)
    built = _both_towers(stored.build(), found)
    return ImageTextModel(built.requires_grad_(requires_grad=False).to(device=device, dtype=dtype))


def load_identified(
    model: str | Path | DualEncoderSpec | None = None,
    checkpoint: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    image_size: int | None = None,
    context_length: int | None = None,
    trust: bool = False,
) -> tuple[ImageTextModel, ModelIdentity]:
    """Return a pretrained model, folded, as `load` does, and what identifies it wherever its embeddings are kept.

    Raises:
        ValueError, FileNotFoundError, CheckpointError: see `load`.
    """
    if is_export(_found(model, checkpoint)[1]):
        exported = load(
            model, checkpoint, device=device, image_size=image_size, context_length=context_length, trust=trust
        )
        return exported, identity_of(exported.model)
    stored = load_stored(model, checkpoint, image_size=image_size, context_length=context_length).model
    return ImageTextModel(reparameterize(stored).to(device)), identity_of(stored)


def identity_of(model: DualEncoder) -> ModelIdentity:
    """Return what identifies a model in embeddings of it.

    Args:
        model: in the form that it is stored in.
    """
    return ModelIdentity(
        weights_sha256=weights_sha256(model.state_dict()),
        spec=to_json(model.spec, unstructure_as=DualEncoderSpec),
        version=VERSION,
    )


def require_labels(labels: Sequence[str], template: str) -> None:
    """Refuse texts that nothing can be chosen among.

    Args:
        labels: at least one, no two equal, none blank.
        template: with a place for a label.

    Raises:
        ValueError: if they are not.
    """
    if isinstance(labels, str) or not labels:
        raise ValueError('labels are a list of at least one text to choose among, such as "a cat" "a dog"')
    if not all(label.strip() for label in labels):
        raise ValueError("a label is blank; expected texts to choose among")
    if twice := repeated(labels):
        raise ValueError(f"labels are given twice: {', '.join(twice[:5])}")
    if "{}" not in template:
        raise ValueError(f"the template {template!r} has no {{}} for the label, as in 'a photo of a {{}}'")


def require_model(model: str | Path | DualEncoderSpec | None, checkpoint: str | Path | None = None) -> None:
    """Refuse a model that `load` would refuse for its name or its file's: nothing is read, and nothing is fetched.

    Raises:
        ValueError, FileNotFoundError: see `load`.
    """
    wanted, found = _found(model, checkpoint)
    if isinstance(wanted, str):
        resolve_spec(wanted)
    if not str(found).startswith(PREFIX) and not is_export(found) and not local_checkpoint(found).is_file():
        raise FileNotFoundError(f"no checkpoint at {found}: there is no such file")


def device_for(model: str | Path | None, checkpoint: str | Path | None, device: str) -> str:
    """Return where a model is to compute: for `auto`, the best that is here, and the processor for an export.

    Raises:
        ValueError: if there is no such device.
    """
    if is_export(checkpoint or model or ""):
        return "cpu" if device == AUTO else device
    return str(pick_device(device))


def holds_weights(name: str | Path) -> bool:
    """Return whether a file, a folder or a repository on the hub is meant, and no model by its name.

    Args:
        name: as a person gives a model; a folder that is called like a known model stands for that model.
    """
    text = str(name)
    if text.startswith(PREFIX) or Path(text).is_file():
        return True
    is_known = any(text in registry for registry in (models, image_encoders, text_encoders))
    return bool(text.strip()) and not is_known and Path(text).is_dir()


def _found(
    model: str | Path | DualEncoderSpec | None, checkpoint: str | Path | None
) -> tuple[str | ModelSpec | None, str | Path]:
    """Return the model that is wanted, if any is named, and its checkpoint."""
    if checkpoint is None and model is not None and not isinstance(model, DualEncoderSpec):
        if str(model) in PRETRAINED:
            checkpoint = PRETRAINED[str(model)]
        elif holds_weights(model):
            model, checkpoint = None, model
        else:
            spec_called(model)
    if checkpoint is None:
        raise ValueError(
            unpublished("this model" if model is None or isinstance(model, DualEncoderSpec) else str(model))
        )
    return str(model) if isinstance(model, Path) else model, checkpoint


def spec_called(name: str | Path) -> ModelSpec:
    """Return the spec of a model or tower that is known by name.

    Raises:
        FileNotFoundError: if a file was meant, which is not there.
        ValueError: if the name is unknown; the message has the nearest ones.
    """
    try:
        return resolve_spec(str(name))
    except ValueError:
        path = Path(name)
        if isinstance(name, Path) or len(path.parts) > 1 or path.suffix.lower() in CHECKPOINT_SUFFIXES:
            raise FileNotFoundError(f"there is no checkpoint at {path}") from None
        raise


def _exported(
    folder: str | Path,
    wanted: str | ModelSpec | None,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    sizes: tuple[int | None, int | None],
    trust: bool,
) -> ImageTextModel:
    """Return an export as a model, unless it is asked to be another one."""
    if wanted is not None or dtype != torch.float32 or sizes != (None, None):
        raise ValueError(
            f"{folder} is an export, which has the model, the precision and the sizes that it was exported with; give "
            "it alone, or give the checkpoint that it was exported from"
        )
    from mobileclip.export.running import load_export

    return ImageTextModel(load_export(folder, device=str(device), trust=trust))


def _both_towers(loaded: nn.Module, checkpoint: str | Path) -> DualEncoder:
    if isinstance(loaded, Classifier):
        raise ValueError(
            f"{checkpoint} holds a classifier, and this needs an image-text model; load the classifier with "
            "mobileclip.encoders.load_model"
        )
    if not isinstance(loaded, DualEncoder):
        raise ValueError(
            f"{checkpoint} holds one tower, and this needs both; load the tower with mobileclip.encoders.load_model"
        )
    return loaded
