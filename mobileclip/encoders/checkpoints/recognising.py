"""Recognises a checkpoint's wrappers, layout, form and model from tensor names and shapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, cast

import attrs
import torch
from torch import Tensor

from mobileclip.blocks import image_encoders, models, text_encoders
from mobileclip.encoders.checkpoints.layouts import (
    COMPILED,
    FORMS,
    OWN,
    Form,
    Layout,
    ModelSpec,
    has_projection,
    layouts,
    prefix_of,
    tensor_shapes,
    towers,
)
from mobileclip.encoders.classifier import ClassifierSpec
from mobileclip.encoders.coca import CoCaSpec
from mobileclip.encoders.dual import DualEncoderSpec
from mobileclip.encoders.families import ImageEncoderSpec, as_trained
from mobileclip.tensor_files import CheckpointError
from mobileclip.tensor_files.errors import shown
from mobileclip.terminal import get_logger

# Segments that `torch.compile`, FSDP and PyTorch's checkpoint wrapper insert anywhere in names.
_WRAPPED = (COMPILED, "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# Name segments of tensors that training scripts store next to the model's tensors.
_BESIDE = frozenset(("criterion", "loss", "loss_fn", "optimizer", "n_averaged"))

_logger = get_logger(__name__)

Tensors = Mapping[str, Tensor]
Tower = Literal["image", "text"]


@attrs.frozen(kw_only=True)
class CheckpointMatch:
    """An interpretation of a file's tensors: model, form and layout, from the header or from tensor names.

    Args:
        spec: spec of the model.
        form: form of the tensors: `training`, `branches_folded` or `folded`.
        layout: layout of the tensor names.
        tensors: tensors by the layout's names; names of a single tower begin with the tower's prefix in whole models.
    """

    spec: ModelSpec
    form: Form
    layout: Layout
    tensors: Tensors = attrs.field(repr=False, eq=False)

    @property
    def constants(self) -> dict[str, Tensor]:
        """Constant tensors that the layout has in addition to the model's tensors."""
        return {name: one for _, tower in towers(self.spec) for name, one in self.layout.constants(tower).items()}

    @property
    def names(self) -> set[str]:
        """Names of the model's tensors in the layout."""
        return {entry.name for entry in self.layout.entries(self.spec, self.form).values()}

    @property
    def fits(self) -> bool:
        """Whether the tensors have the expected names and numbers of elements; optional tensors may be absent."""
        shapes, given = tensor_shapes(self.spec, self.form), self.tensors.keys() - self.constants.keys()
        # Compare the tensor counts first, since computing the layout's names takes longer.
        if not sum(not is_optional_tensor(name) for name in shapes) <= len(given) <= len(shapes):
            return False
        entries = self.layout.entries(self.spec, self.form)
        held = {own: entry.name for own, entry in entries.items() if entry.name in given}
        return (
            len(held) == len(given)
            and all(is_optional_tensor(own) for own in entries.keys() - held.keys())
            and all(self.tensors[name].numel() == torch.Size(shapes[own]).numel() for own, name in held.items())
        )


def recognised(path: Path, tensors: Tensors, wanted: ModelSpec | None, tower: Tower | None) -> CheckpointMatch:
    """Return the layout, form and model of a file, from the names and shapes of its tensors.

    This library's tensor names take precedence. If several registered models fit, the caller must name the model, since
    tensor shapes do not determine head counts and attention masks.

    Args:
        path: path of the file, for error messages.
        tensors: tensors by their names in the file.
        wanted: spec of the expected model or tower; None to search all registered models.
        tower: `image` or `text` to load only this tower; None for the whole model.

    Raises:
        CheckpointError: if the tensors fit no known layout, no known model, or several models.
    """
    tensors = _without_others(path, tensors)
    said = (layout.spec_of(given) for given in _unwrapped(tensors) for layout in layouts.values())
    try:
        wanted = wanted or next((spec for spec in said if spec is not None), None)
    except ValueError as error:
        raise CheckpointError(f"{path} {error}; pass the spec of the model", code="description") from error
    if wanted is not None:
        return _best(path, tensors, list(dict.fromkeys((wanted, part(wanted, tower)))))
    found = {name: match for given in _unwrapped(tensors) for name, match in _known(given, tower)}
    if not found:
        _require_layout(path, tensors)
        raise CheckpointError(
            f"{path} is in a known layout, but its tensors do not fit any registered model; pass the name or the spec "
            "of the model",
            code="unknown_model",
        )
    first, *others = found.values()
    if any(as_trained(part(other.spec, tower)) != as_trained(part(first.spec, tower)) for other in others):
        raise CheckpointError(
            f"{path} does not name its model, and its tensors fit {' and '.join(found)}, which compute "
            "different embeddings; pass the name of the model",
            code="ambiguous",
        )
    return first


def matching_names(match: CheckpointMatch) -> list[str]:
    """Return the names of models or towers that fit the tensors' names and form."""
    prefix = prefix_of(match.spec)
    registry = models if not prefix else image_encoders if prefix == "image_encoder." else text_encoders
    others = {
        name: attrs.evolve(match, spec=adapted(match.layout, cast("ModelSpec", known), match.tensors))
        for name, known in registry.items()
    }
    return [name for name, other in others.items() if other.fits]


def part(spec: ModelSpec, tower: Tower | None) -> ModelSpec:
    """Return the spec of a model's tower, or the whole model's spec if `tower` is None."""
    if tower is None or not isinstance(spec, (DualEncoderSpec, ClassifierSpec)):
        return spec
    return spec.text if tower == "text" and isinstance(spec, DualEncoderSpec) else spec.image


def adapted(layout: Layout, spec: ModelSpec, tensors: Tensors) -> ModelSpec:
    """Return the spec of the model that the layout's library would build for `tensors`."""
    if isinstance(spec, DualEncoderSpec):
        return attrs.evolve(spec, image=layout.adapted(spec.image, tensors))
    return layout.adapted(spec, tensors) if isinstance(spec, ImageEncoderSpec) else spec


def abbreviated_list(names: Iterable[str], count: int = 4) -> str:
    """Return a few names and the number of further names."""
    names = sorted(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(map(shown, names[:count])) + more


def _best(path: Path, tensors: Tensors, wanted: list[ModelSpec]) -> CheckpointMatch:
    """Return the first interpretation that fits, or otherwise the interpretation that matches the most names."""
    matches: list[CheckpointMatch] = []
    for spec in wanted:
        matches = []
        for match in (match for given in _unwrapped(tensors) for match in _matches(given, spec)):
            if match.fits:
                return match
            matches.append(match)
    best = max(matches, key=lambda match: len((match.names - {"logit_scale"}) & match.tensors.keys()), default=None)
    if best is None or not (best.names - {"logit_scale"}) & best.tensors.keys():
        layout = _require_layout(path, tensors)
        if isinstance(wanted[-1], ClassifierSpec):
            raise CheckpointError(
                f"{path} is in the {layout.name} layout, which does not support classifiers; load only the "
                "image tower, with mobileclip.encoders.load_backbone",
                code="another_model",
            )
    assert best is not None, "every model has a form in our own layout"
    return best


def _unwrapped(tensors: Tensors) -> Iterator[Tensors]:
    """Yield the tensors by name, first with full names, then without the prefixes that all names share."""
    given = {without_wrappers(name): one for name, one in tensors.items()}
    given = given if len(given) == len(tensors) else dict(tensors)
    yield given
    while len({name.partition(".")[0] for name in given}) == 1 and all("." in name for name in given):
        given = {name.partition(".")[2]: one for name, one in given.items()}
        yield given


def without_wrappers(name: str) -> str:
    """Return the name of a tensor without the prefixes of PyTorch's wrappers."""
    for segment in _WRAPPED:
        name = name.replace(segment, "")
    return name


def is_optional_tensor(name: str) -> bool:
    """Return whether a file may lack this tensor: a batch counter or the logit scale."""
    return name.endswith("num_batches_tracked") or name == "logit_scale"


def _without_others(path: Path, tensors: Tensors) -> Tensors:
    """Return the tensors without the tensors of losses and optimizers, and log the names of the dropped tensors."""
    others = [name for name in tensors if _BESIDE.intersection(name.split("."))]
    if others:
        _logger.info("%s: ignoring tensors that are not part of the model: %s", path, abbreviated_list(others))
    return {name: one for name, one in tensors.items() if name not in others}


def _matches(tensors: Tensors, spec: ModelSpec) -> Iterator[CheckpointMatch]:
    """Yield candidate interpretations of the tensors, likely and cheap ones first."""
    folded = any("reparam" in name for name in tensors)
    foreign: Form = "branches_folded" if folded else "training"
    tries: list[tuple[Layout, Form]] = [(OWN, "training"), *((layout, foreign) for layout in layouts.values())]
    for layout, form in (*tries, *((OWN, form) for form in FORMS if form != "training")):
        if layout is not OWN and not layout.has_place(spec):
            continue
        there = layout.unpacked(_of_part(layout, spec, tensors), spec)
        for one in _with_bare(adapted(layout, spec, there)):
            if layout is OWN and form != "training" and not _speaks_for(one, there):
                continue
            yield CheckpointMatch(spec=one, form=form, layout=layout, tensors=there)


def _speaks_for(spec: ModelSpec, tensors: Tensors) -> bool:
    """Return whether any tensor except the logit scale has its name in this library's layout."""
    prefix = prefix_of(spec)
    return any(f"{prefix}{name}" in tensors for name in tensor_shapes(spec, "training") if name != "logit_scale")


def _of_part(layout: Layout, spec: ModelSpec, tensors: Tensors) -> Tensors:
    """Return the tensors of one tower, with their names in the whole model."""
    if isinstance(spec, (DualEncoderSpec, ClassifierSpec, CoCaSpec)):
        return tensors
    prefix = layout.prefix(spec)
    own = {name: one for name, one in tensors.items() if name.startswith(prefix)}
    return own if own or layout is not OWN else {f"{prefix}{name}": one for name, one in tensors.items()}


def _with_bare(spec: ModelSpec) -> Iterator[ModelSpec]:
    """Yield a model and, for an image tower, also the tower without projection, like timm's `num_classes=0`."""
    yield spec
    if isinstance(spec, ImageEncoderSpec) and has_projection(spec) and (bare := without_projection(spec)) is not None:
        yield bare


def without_projection(spec: ImageEncoderSpec) -> ImageEncoderSpec | None:
    """Return the spec without the last projection; None if the encoder needs the projection."""
    try:
        return spec.without_projection()
    except ValueError:
        return None


def _known(tensors: Tensors, tower: Tower | None) -> Iterator[tuple[str, CheckpointMatch]]:
    """Yield the named models that fit, and then the towers that fit."""
    first: CheckpointMatch | None = None
    named = [*models.items(), *image_encoders.items(), *text_encoders.items()]
    parts = [
        (f"a tower of {name}", one) for name, model in models.items() for _, one in towers(cast("ModelSpec", model))
    ]
    for name, known in (*named, *parts):
        spec = cast("ModelSpec", known)
        if spec.num_blocks > len(tensors) or (first is not None and not _may_equal(spec, first.spec)):
            continue
        is_asked = tower is not None and prefix_of(spec).startswith(tower)
        for match in _matches(tensors, spec):
            if (is_asked or len(match.tensors) == len(tensors)) and match.fits:
                first = first or match
                yield name, match
                break


def _may_equal(spec: ModelSpec, other: ModelSpec) -> bool:
    """Return whether two models may have the same tensors, without building them."""
    pairs = zip(towers(spec), towers(other), strict=False)
    return len(towers(spec)) == len(towers(other)) and all(
        type(one) is type(two) and one.num_blocks == two.num_blocks for (_, one), (_, two) in pairs
    )


def _require_layout(path: Path, tensors: Tensors) -> Layout:
    """Return the layout of the tensor names.

    Raises:
        CheckpointError: if no known layout has such tensor names.
    """
    for layout in (*layouts.values(), OWN):
        known = tuple(filter(None, (layout.image_prefix, layout.text_prefix))) or ("stem.", "patch_embed.")
        if any(name.startswith(known) for given in _unwrapped(tensors) for name in given):
            return layout
    raise CheckpointError(
        f"{path} has no known layout ({', '.join(layouts)} or mobileclip); its first tensors are "
        f"{abbreviated_list(tensors, 3)}",
        code="unknown_layout",
    )
