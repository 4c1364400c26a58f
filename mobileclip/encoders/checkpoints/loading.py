"""Load a model, or one tower of it, from a checkpoint of any known layout and form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, cast

import attrs
import torch
from torch import Tensor, nn

from mobileclip.blocks import image_encoders, models, named_spec, text_encoders
from mobileclip.encoders.checkpoints import native
from mobileclip.encoders.checkpoints.forms import Form, skeleton, tensor_dtypes, tensor_shapes
from mobileclip.encoders.checkpoints.hub import fetched
from mobileclip.encoders.checkpoints.layouts import As, Layout, ModelSpec, layouts, towers
from mobileclip.encoders.checkpoints.numbers import check_cast, check_numbers
from mobileclip.encoders.checkpoints.resizing import resized
from mobileclip.encoders.classifier import ClassifierSpec
from mobileclip.encoders.dual import DualEncoderSpec
from mobileclip.encoders.families import ImageEncoderSpec, as_trained
from mobileclip.reparam import reparameterize
from mobileclip.tensor_files import CheckpointError, read_tensors
from mobileclip.tensor_files.errors import shown

Tower = Literal["image", "text"]


@attrs.frozen(kw_only=True)
class Stored:
    """What a checkpoint holds, in our names.

    Args:
        spec: the model that its tensors belong to.
        form: the form that they are in.
        layout: name of the layout of the file.
        tensors: our names to tensors, as stored.
    """

    spec: ModelSpec
    form: Form
    layout: str
    tensors: dict[str, Tensor] = attrs.field(repr=False, eq=False)

    def build(self) -> nn.Module:
        """Return the model in the form that it is stored in, in float32 and in evaluation mode."""
        model = skeleton(self.spec, self.form)
        wide = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in self.tensors.items()}
        model.load_state_dict(wide, assign=True)
        return model

    def of_size(self, *, image_size: int | None = None, context_length: int | None = None) -> Stored:
        """Return what it holds for images of another size or texts of another length; see `load_model`.

        Raises:
            ValueError: if there is no such tower, or its weights cannot be had for that size.
        """
        if image_size is None and context_length is None:
            return self
        spec, tensors = resized(
            self.spec, self.form, self.tensors, image_size=image_size, context_length=context_length
        )
        return attrs.evolve(self, spec=spec, tensors=tensors)


def load_model(
    checkpoint: str | Path,
    model: str | ModelSpec | None = None,
    *,
    tower: Tower | None = None,
    fold: bool = True,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    image_size: int | None = None,
    context_length: int | None = None,
) -> nn.Module:
    """Return the model in a checkpoint, in evaluation mode, with every tensor of the file in its place.

    At another image size or context length, the spec of the model says so (`input.size`, `input.context_length`), its
    transform and its tokenizer follow, and it is saved and exported as such.

    Args:
        checkpoint: a file in the official, open_clip's, timm's or our own layout, in training form or folded; a folder
            with one such file; or a repository on the hub, `hf-hub:owner/name`.
        model: the name or spec of the model, or of one of its towers to load that alone. Found from the file if
            it is left out.
        tower: load this tower alone.
        fold: fold branches, norms and scales for inference. Without it the training form is returned, which
            a folded checkpoint no longer has.
        dtype: of the weights; folding happens before the cast.
        device: where to.
        image_size: side of the images, in pixels, where it is not the checkpoint's own. The positions of a ViT are
            interpolated, and an MCi has none; the published ones were trained at their own size alone.
        context_length: ids per text, where it is not the checkpoint's own, at most that. Causal towers embed texts
            that fit into it as before. The others attend to the padding, so every embedding changes: with random
            weights, cut from 77 ids to 64, 32 and 16, it keeps a mean cosine to the whole one's of 0.998, 0.96 and
            0.69 in the base tower, of 0.999, 0.97 and 0.77 in MCt. Evaluate before you use it.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if a tensor is missing, left over, of another shape, or not finite; if the file holds another
            model; or if the training form is asked of a folded checkpoint.
        ValueError: if the name is unknown, or the model cannot have that image size or context length.

    Examples:
        >>> save_model(MCtSpec(width=16, depth=0, num_heads=2).build(), "text.safetensors")
        >>> mobileclip.reparam.is_folded(load_model("text.safetensors"))
        True
        >>> mobileclip.reparam.is_folded(load_model("text.safetensors", fold=False))
        False
        >>> load_model("text.safetensors", context_length=32).spec.input.context_length
        32
    """
    stored = read_checkpoint(checkpoint, model, tower=tower)
    if not fold and stored.form != "training":
        raise CheckpointError(
            f"{checkpoint} is folded and no longer has the branches that training needs; start from the checkpoint in "
            "training form that it was made of (as it is, it can be evaluated, converted and exported, but not trained)"
        )
    loaded = stored.of_size(image_size=image_size, context_length=context_length).build()
    if fold and stored.form != "folded":
        loaded = reparameterize(loaded, inplace=True)
    check_cast(loaded, dtype)
    return loaded.requires_grad_(not fold).to(device=device, dtype=dtype)


def read_checkpoint(
    checkpoint: str | Path, model: str | ModelSpec | None = None, *, tower: Tower | None = None
) -> Stored:
    """Return what a checkpoint holds, checked against the model it should be; arguments and errors as `load_model`."""
    path = fetched(checkpoint)
    tensors, metadata = read_tensors(path)
    wanted = resolve_spec(model) if isinstance(model, str) else model
    header = native.header_of(metadata, path)
    if header is not None:
        stored = _from_header(path, tensors, header, wanted, tower)
    else:
        layout = _layout_of(path, tensors)
        stored = _from_foreign(path, tensors, layout, wanted, tower)
    check_numbers(path, stored.tensors, tensor_dtypes(stored.spec, stored.form))
    return stored


def _layout_of(path: Path, tensors: dict[str, Tensor]) -> Layout:
    for layout in layouts.values():
        if layout.recognises(tensors):
            return layout
    raise CheckpointError(
        f"{path} is of no known layout ({', '.join(layouts)} or our own); its first tensors are {_some(tensors, 3)}"
    )


def resolve_spec(name: str) -> ModelSpec:
    """Return the spec called `name`, of a model or of a tower.

    Raises:
        ValueError: if the name is unknown.
    """
    return cast("ModelSpec", named_spec(name))


def is_other_model(spec: DualEncoderSpec, other: DualEncoderSpec) -> bool:
    """Return whether no checkpoint can hold both models: what its layout decides of a spec does not count."""
    layout = layouts["official"]
    return as_trained(_adapted(layout, spec, {})) != as_trained(_adapted(layout, other, {}))


def _from_header(
    path: Path, tensors: dict[str, Tensor], header: native.Header, wanted: ModelSpec | None, tower: Tower | None
) -> Stored:
    spec = header.spec
    if header.layout != native.NAME:
        layout = layouts[header.layout]
        wanted = wanted and _adapted(layout, wanted, tensors)
        _check_size(path, tensors, spec)
        tensors = _placed(
            path, _without_constants(path, layout, spec, tensors), layout.entries(spec, header.form), spec, header.form
        )
    tower = tower or _tower_of(wanted)
    if tower is not None:
        spec, tensors = _one_tower(path, spec, tensors, tower)
    wanted = _part(wanted, tower) if wanted is not None and tower is not None else wanted
    if wanted is not None:
        stored, asked = as_trained(spec), as_trained(wanted)
        if stored != asked:
            raise CheckpointError(
                f"{path} holds another model than asked for: {difference(stored, asked)}; "
                "leave the model out to load what the file holds"
            )
        # What it starts or trains with is the caller's choice.
        spec = spec if spec == wanted else wanted
    _check_size(path, tensors, spec)
    expected = {name: As(name) for name in tensor_shapes(spec, header.form)}
    placed = _placed(path, tensors, expected, spec, header.form)
    return Stored(spec=spec, form=header.form, layout=header.layout, tensors=placed)


def _without_constants(path: Path, layout: Layout, spec: ModelSpec, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that the model has a place for; those of the layout alone are what they always are."""
    constants = _constants(layout, spec)
    for name in constants.keys() & tensors.keys():
        if not torch.equal(tensors[name].float(), constants[name]):
            raise CheckpointError(f"{path} does not fit the model: its spec has no place for {shown(name)}")
    return {name: tensor for name, tensor in tensors.items() if name not in constants}


def _constants(layout: Layout, spec: ModelSpec) -> dict[str, Tensor]:
    return {name: tensor for _, part in towers(spec) for name, tensor in layout.constants(part).items()}


def _check_size(path: Path, tensors: dict[str, Tensor], spec: ModelSpec) -> None:
    """Refuse a spec of more blocks than the file has tensors, before anything is built of it."""
    if spec.num_blocks > len(tensors):
        raise CheckpointError(
            f"{path} says that its model has {spec.num_blocks:,} blocks, and it holds {len(tensors):,} tensors; "
            "it is damaged"
        )


def _one_tower(
    path: Path, spec: ModelSpec, tensors: dict[str, Tensor], tower: Tower
) -> tuple[ModelSpec, dict[str, Tensor]]:
    if isinstance(spec, ClassifierSpec) and tower == "text":
        raise CheckpointError(f"{path} holds a classifier, which has no text tower")
    if not isinstance(spec, (DualEncoderSpec, ClassifierSpec)):
        if _tower_of(spec) != tower:
            raise CheckpointError(f"{path} holds a tower alone, and it is not the {tower} tower")
        return spec, tensors
    prefix = f"{tower}_encoder."
    part = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return _part(spec, tower), part


def _from_foreign(
    path: Path, tensors: dict[str, Tensor], layout: Layout, wanted: ModelSpec | None, tower: Tower | None
) -> Stored:
    form: Form = "branches_folded" if any("reparam" in name for name in tensors) else "training"
    tower = tower or _tower_of(wanted)
    if isinstance(wanted, ClassifierSpec) and layout.has_bare_towers:
        placed = _placed(path, tensors, layout.entries(wanted, form), wanted, form)
        spec, placed = (wanted, placed) if tower is None else _one_tower(path, wanted, placed, tower)
        return Stored(spec=spec, form=form, layout=layout.name, tensors=placed)
    if isinstance(wanted, ClassifierSpec):
        raise CheckpointError(
            f"{path} is in the {layout.name} layout, which holds image-text models and no classifier; take its image "
            "tower with mobileclip.encoders.load_backbone"
        )
    if tower is not None:
        prefix = layout.image_prefix if tower == "image" else layout.text_prefix
        tensors = {name: value for name, value in tensors.items() if name.startswith(prefix)}
    if wanted is None:
        wanted = next((spec for _, spec in _fitting(layout, form, tensors, tower)), None)
    if wanted is None:
        raise CheckpointError(
            f"{path} is in the {layout.name} layout, but its tensors fit none of the models known by name; "
            "give the spec of the model it holds"
        )
    spec = _adapted(layout, _part(wanted, tower) if tower is not None else wanted, tensors)
    constants = _constants(layout, spec)
    relevant = {name: value for name, value in tensors.items() if name not in constants}
    try:
        placed = _placed(path, relevant, layout.entries(spec, form), spec, form)
    except CheckpointError as error:
        fitting = " or ".join(name for name, _ in _fitting(layout, form, tensors, tower))
        raise CheckpointError(f"{error}; its tensors fit {fitting}" if fitting else str(error)) from None
    return Stored(spec=spec, form=form, layout=layout.name, tensors=placed)


def _fitting(
    layout: Layout, form: Form, tensors: dict[str, Tensor], tower: Tower | None
) -> Iterator[tuple[str, ModelSpec]]:
    """Yield the models known by name whose tensors are exactly these, by name and shape."""
    registry = {"image": image_encoders, "text": text_encoders}[tower] if tower else models
    alone = () if tower else (*image_encoders.items(), *text_encoders.items())
    for name, known in (*registry.items(), *alone):
        spec = _adapted(layout, cast("ModelSpec", known), tensors)
        constants = _constants(layout, spec)
        shapes = tensor_shapes(spec, form)
        # Their names in the layout take longer to find than their number.
        if len(shapes) + len(constants) != len(tensors):
            continue
        entries = layout.entries(spec, form)
        if tensors.keys() == {entry.name for entry in entries.values()} | constants.keys() and all(
            tensors[entry.name].numel() == torch.Size(shapes[own]).numel() for own, entry in entries.items()
        ):
            yield name, spec


def _placed(
    path: Path, tensors: dict[str, Tensor], entries: dict[str, As], spec: ModelSpec, form: Form
) -> dict[str, Tensor]:
    """Return the tensors under the library's names and in its shapes, all of them and nothing else."""
    expected_names = {entry.name for entry in entries.values()}
    problems = [
        f"{len(names)} {what} ({_some(names)})"
        for what, names in (
            ("missing", [name for name in expected_names if name not in tensors]),
            ("left over", [name for name in tensors if name not in expected_names]),
        )
        if names
    ]
    if problems:
        raise CheckpointError(f"{path} does not fit the model: tensors {' and '.join(problems)}")
    placed = {}
    for name, shape in tensor_shapes(spec, form).items():
        entry = entries[name]
        tensor = tensors[entry.name]
        reshaped = tensor
        # What is held in another shape has other dimensions, and is not turned where it has not as many.
        if entry.reshape is not None and tensor.numel() == torch.Size(shape).numel():
            reshaped = entry.reshape.from_layout(tensor).contiguous()
        if tuple(reshaped.shape) != shape:
            raise CheckpointError(
                f"{path} does not fit the model: {shown(entry.name)} has the shape {tuple(tensor.shape)}, "
                f"and the model's is {shape}"
            )
        placed[name] = reshaped
    return placed


def _some(names: Iterable[str], count: int = 4) -> str:
    names = sorted(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(map(shown, names[:count])) + more


def _adapted(layout: Layout, spec: ModelSpec, tensors: dict[str, Tensor]) -> ModelSpec:
    if isinstance(spec, DualEncoderSpec):
        return attrs.evolve(spec, image=layout.adapted(spec.image, tensors))
    return layout.adapted(spec, tensors) if isinstance(spec, ImageEncoderSpec) else spec


def _tower_of(spec: ModelSpec | None) -> Tower | None:
    if spec is None or isinstance(spec, (DualEncoderSpec, ClassifierSpec)):
        return None
    return "image" if isinstance(spec, ImageEncoderSpec) else "text"


def _part(spec: ModelSpec, tower: Tower) -> ModelSpec:
    if isinstance(spec, ClassifierSpec):
        return spec.image
    if not isinstance(spec, DualEncoderSpec):
        return spec
    return spec.image if tower == "image" else spec.text


def difference(stored: Any, wanted: Any) -> str:
    """Say where two specs differ first, as a path and two values."""
    if type(stored) is not type(wanted):
        return f"a {type(stored).__name__}, not a {type(wanted).__name__}"
    for field in attrs.fields(type(stored)):
        own, other = getattr(stored, field.name), getattr(wanted, field.name)
        if own != other:
            nested = attrs.has(type(own)) and attrs.has(type(other))
            return f"{field.name}.{difference(own, other)}" if nested else f"{field.name} is {own!r}, not {other!r}"
    raise AssertionError("equal specs do not differ")
