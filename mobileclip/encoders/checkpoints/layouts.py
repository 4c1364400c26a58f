"""Checkpoint layouts (tensor names and shapes), and the forms of a model: training or reparameterized."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, TypeGuard, cast

import attrs
import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mobileclip.blocks import Buildable, LargeKernelConv, MobileOneBlock, RepCPE, RepMixer
from mobileclip.encoders.classifier import ClassifierSpec
from mobileclip.encoders.coca import CoCaSpec
from mobileclip.encoders.dual import DualEncoderSpec
from mobileclip.encoders.families import ImageEncoderSpec, TextEncoderSpec
from mobileclip.encoders.mci import MCiSpec
from mobileclip.encoders.text import MCtSpec
from mobileclip.encoders.vit import ViTSpec
from mobileclip.registry import Registry
from mobileclip.reparam import reparameterize

Form = Literal["training", "branches_folded", "folded"]

FORMS: tuple[Form, ...] = ("training", "folded", "branches_folded")
COMPILED = "_orig_mod."
"""Prefix that torch.compile adds to the names of a module's tensors."""
_BRANCHED = (MobileOneBlock, RepMixer, LargeKernelConv, RepCPE)


def in_form(model: nn.Module, form: Form, *, inplace: bool = False) -> nn.Module:
    """Convert `model` from the training form to `form`.

    Args:
        model: a model in evaluation mode.
        form: `training` changes nothing; `branches_folded` reparameterizes branches like Apple's code and timm, and
            keeps some norms and scales; `folded` reparameterizes everything.
        inplace: whether to change `model` in place; use only the returned model afterwards.
    """
    if form == "training":
        return model
    return reparameterize(model, only=_BRANCHED if form == "branches_folded" else (), inplace=inplace)


def skeleton(spec: Buildable, form: Form) -> nn.Module:
    """Return the model of `spec` in `form`, on the meta device (without memory for weights) and in evaluation mode.

    Raises:
        ValueError: if `build` needs tensor values, which the meta device lacks.
    """
    try:
        with torch.device("meta"), _ShapesAlone():
            return in_form(spec.build().eval(), form, inplace=True)
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error):
            raise
        first = str(error).partition("\n")[0]
        raise ValueError(
            f"{type(spec).__name__}.build() reads values of tensors (.item(), .tolist() or a condition), but "
            "loading and saving build the model on the meta device, which has no values; compute the values in Python "
            f"or NumPy ({first})"
        ) from error


class _ShapesAlone(TorchFunctionMode):
    """Skip random numbers and arithmetic on the meta device; PyTorch would load its compiler, which takes seconds."""

    _RANDOM = (
        torch.Tensor.normal_,
        torch.Tensor.uniform_,
        nn.init.normal_,
        nn.init.uniform_,
        nn.init.kaiming_uniform_,
    )
    _ELEMENTWISE = (
        torch.add,
        torch.Tensor.add,
        torch.Tensor.sub,
        torch.Tensor.mul,
        torch.Tensor.neg,
        torch.Tensor.rsqrt,
        torch.Tensor.remainder,
    )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if func in self._RANDOM:
            return args[0] if args else kwargs["tensor"]
        if func in self._ELEMENTWISE and not kwargs:
            shapes = [one.shape for one in args if isinstance(one, torch.Tensor)]
            return torch.empty(np.broadcast_shapes(*shapes), dtype=torch.result_type(args[0], args[-1]))
        if func is torch.Tensor.matmul and args[0].dim() == 2:
            return torch.empty(args[0].shape[:1] + args[1].shape[1:], dtype=args[0].dtype)
        return func(*args, **kwargs)


def tensor_shapes(spec: Hashable, form: Form) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor by name, ordered like the state dict, for the model of `spec` in `form`."""
    return {name: shape for name, (shape, _) in _described(spec, form).items()}


def tensor_dtypes(spec: Hashable, form: Form) -> dict[str, torch.dtype]:
    """Return the dtype of each tensor by name, for the model of `spec` in `form`."""
    return {name: dtype for name, (_, dtype) in _described(spec, form).items()}


def require_hashable(spec: object) -> None:
    """Raise unless a spec can be hashed.

    Raises:
        ValueError: if a field of the spec is mutable, such as a list.
    """
    try:
        hash(spec)
    except TypeError as error:
        raise ValueError(
            f"{type(spec).__name__} cannot be hashed ({error}), but specs must be immutable; decorate the class "
            "with @attrs.frozen(kw_only=True), and use tuples instead of lists"
        ) from None


def _described(spec: Hashable, form: Form) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    require_hashable(spec)
    return _known_shapes(spec, form)


@lru_cache(maxsize=128)
def _known_shapes(spec: Hashable, form: Form) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    if isinstance(spec, DualEncoderSpec):  # several models share a tower, which is built only once
        towers = {"image_encoder": spec.image, "text_encoder": spec.text}
        parts = (
            (f"{tower}.{name}", one) for tower, part in towers.items() for name, one in _described(part, form).items()
        )
        return {"logit_scale": ((), torch.float32), **dict(parts)}
    state = state_of(skeleton(cast("Buildable", spec), form))
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a model's tensors for a file, with a scalar logit scale and without torch.compile's name prefix.

    Args:
        model: the model; any of its modules may be compiled.
    """
    state = {name.replace(COMPILED, ""): tensor for name, tensor in model.state_dict().items()}
    if isinstance(model.spec, DualEncoderSpec):
        state["logit_scale"] = state["logit_scale"].reshape(())
    return state


def form_of(model: nn.Module) -> Form:
    """Return the form of `model`, which must have its spec in the attribute `spec`.

    Raises:
        ValueError: if the tensors match the spec in no form, for example after a layer was replaced.
    """
    own = {name: tuple(tensor.shape) for name, tensor in state_of(model).items()}
    for form in FORMS:
        described = tensor_shapes(cast("Hashable", model.spec), form)
        if described == own:
            return form
        if described.keys() == own.keys():
            name = next(name for name in own if own[name] != described[name])
            raise ValueError(
                f"{name} has the shape {own[name]}, but the model's spec describes {described[name]}, so a saved file "
                "could not be loaded again; change the spec (attrs.evolve) and build the model from the new spec"
            )
    raise ValueError(
        f"the tensors of this {type(model).__name__} do not match its spec in any form; a checkpoint can store a model "
        "only as its spec builds it, in training form or reparameterized"
    )


@attrs.frozen
class Reshape:
    """A pair of functions that convert a tensor to another shape and back."""

    to_layout: Callable[[Tensor], Tensor]
    from_layout: Callable[[Tensor], Tensor]


TRANSPOSED = Reshape(lambda tensor: tensor.T, lambda tensor: tensor.T)
ONE_EMPTY_DIM = Reshape(lambda tensor: tensor[None], lambda tensor: tensor[0])
TWO_EMPTY_DIMS = Reshape(lambda tensor: tensor[None, None], lambda tensor: tensor[0, 0])


@attrs.frozen
class StoredName:
    """A tensor's name in a checkpoint layout, and the conversion of the tensor's shape; None for the same shape."""

    name: str
    reshape: Reshape | None = None


TowerSpec = ImageEncoderSpec | TextEncoderSpec
ModelSpec = DualEncoderSpec | ClassifierSpec | CoCaSpec | ImageEncoderSpec | TextEncoderSpec
Rule = tuple[str, str]


@attrs.frozen(eq=False)
class Layout:
    """Names and shapes of a model's tensors in a checkpoint; each library's layout is a subclass.

    Args:
        name: name of the layout, for error messages.
        image_prefix: prefix of the image tower's tensor names.
        text_prefix: prefix of the text tower's tensor names.
        rules: regular expressions for a dual encoder's tensor names, with replacements, applied in order.
        shapes: regular expressions for tensor names, with conversions to the tensors' shapes in files.
        has_bare_towers: whether the layout supports image towers without projection, and classifiers on such towers.
        advice: advice for models that the layout does not support; the error message continues with "save the model
            in our own layout".
    """

    name: str
    image_prefix: str = "image_encoder."
    text_prefix: str = "text_encoder."
    rules: Sequence[Rule] = ()
    shapes: Sequence[tuple[str, Reshape]] = ()
    has_bare_towers: bool = False
    advice: str = ""

    def has_place(self, spec: ModelSpec) -> bool:
        """Return whether the layout supports models with a spec of this class."""
        if isinstance(spec, ClassifierSpec):
            return self.has_bare_towers
        return not isinstance(spec, CoCaSpec) and (isinstance(spec, ImageEncoderSpec) or bool(self.text_prefix))

    def spec_of(self, tensors: Mapping[str, Tensor]) -> ModelSpec | None:
        """Return the spec if the names and shapes of the tensors determine every field, otherwise None.

        Raises:
            ValueError: if the tensors are in this layout but do not determine the spec; the message names the reason.
        """
        del tensors
        return None

    def check(self, tower: TowerSpec) -> None:
        """Raise if the layout, or the code that reads the layout, does not support this tower.

        Raises:
            ValueError: if the tower is not supported; the message names the unsupported property.
        """

    def adapted(self, tower: ImageEncoderSpec, state: Mapping[str, Tensor]) -> ImageEncoderSpec:
        """Return the spec of the image tower that the layout's library would build for the tensors `state`."""
        del state
        return tower

    def constants(self, tower: TowerSpec) -> dict[str, Tensor]:
        """Return the tensors of `tower` that the layout has and this library's model lacks."""
        del tower
        return {}

    def packed(self, tensors: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
        """Return the tensors named in `entries` as the file stores them, split or joined if necessary."""
        del spec
        return dict(tensors)

    def unpacked(self, tensors: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
        """Invert `packed`."""
        del spec
        return dict(tensors)

    def rules_of(self, names: Collection[str]) -> Sequence[Rule]:
        """Return the renaming rules for a model with the tensor names `names`."""
        del names
        return self.rules

    def prefix(self, tower: TowerSpec) -> str:
        """Return the prefix of the tensor names of `tower`."""
        return self.image_prefix if isinstance(tower, ImageEncoderSpec) else self.text_prefix

    def entries(self, spec: ModelSpec, form: Form) -> dict[str, StoredName]:
        """Return each tensor's name and shape in the layout, keyed by this library's name, for a model in `form`."""
        return dict(_entries(self, spec, form))


@lru_cache(maxsize=64)
def _entries(layout: Layout, spec: ModelSpec, form: Form) -> dict[str, StoredName]:
    """Return the cached result of `Layout.entries`, which callers must not change."""
    whole = {f"{prefix_of(spec)}{name}": name for name in tensor_shapes(spec, form)}
    rules = [(re.compile(pattern), by) for pattern, by in layout.rules_of(whole)]
    shapes = [(re.compile(pattern), reshape) for pattern, reshape in layout.shapes]
    entries = {}
    for full, own in whole.items():
        theirs = full
        for pattern, by in rules:
            theirs = pattern.sub(by, theirs)
        entries[own] = StoredName(theirs, next((reshape for pattern, reshape in shapes if pattern.search(full)), None))
    return entries


def towers(spec: ModelSpec) -> list[tuple[str, TowerSpec]]:
    """Return each tower of `spec` with the prefix of its tensor names in this library; a captioner has no towers."""
    if isinstance(spec, DualEncoderSpec):
        return [("image_encoder.", spec.image), ("text_encoder.", spec.text)]
    if isinstance(spec, CoCaSpec):
        return []
    return [("image_encoder.", spec.image)] if isinstance(spec, ClassifierSpec) else [("", spec)]


def prefix_of(spec: ModelSpec) -> str:
    """Return the prefix of a tower's tensor names in a dual encoder's checkpoint; empty for whole models."""
    if isinstance(spec, (DualEncoderSpec, ClassifierSpec, CoCaSpec)):
        return ""
    return "image_encoder." if isinstance(spec, ImageEncoderSpec) else "text_encoder."


OWN = Layout("mobileclip")
"""This library's own layout; a single tower's names have the dual encoder's prefix in `entries`, but not in files."""

layouts: Registry[Layout] = Registry("checkpoint_layout")
"""Layouts of checkpoints by name, except this library's own layout.

Register your own layouts here, or through the entry point group `mobileclip.checkpoint_layout`.
"""


RELEASE_VIT = (1, 1e-5)  # stem padding, epsilon of the norms

_RULES: Sequence[Rule] = (
    (r"(\.branches\.\d+|\.scale|\.large|\.small|ffn\.conv)\.norm\.", r"\1.bn."),
    # Folded branches; a mixer or positional encoding that folds to a convolution has no submodule `conv`.
    (r"(\.stem\.\d+|\.downsample\.1|\.head\.conv)\.conv\.(weight|bias)$", r"\1.reparam_conv.\2"),
    (r"(\.downsample\.0)\.conv\.(weight|bias)$", r"\1.lkb_reparam.\2"),
    (r"(\.token_mixer|\.stages\.\d+\.position)\.(weight|bias)$", r"\1.reparam_conv.\2"),
    (r"(\.stages\.\d+\.position)\.conv\.", r"\1.pe."),
    (r"\.branches\.", ".rbr_conv."),
    (r"\.(scale|skip)\.", r".rbr_\1."),
    (r"\.large\.", ".lkb_origin."),
    (r"\.small\.", ".small_conv."),
    (r"(\.downsample\.0)\.squeeze_excite\.reduce\.", r"\1.se.fc1."),
    (r"(\.downsample\.0)\.squeeze_excite\.expand\.", r"\1.se.fc2."),
    (r"\.squeeze_excite\.", ".se."),
    (r"\.layer_scale\.gamma$", ".layer_scale"),
    (r"\.attention_scale\.gamma$", ".layer_scale_1"),
    (r"\.ffn_scale\.gamma$", ".layer_scale_2"),
    (r"(\.blocks\.\d+)\.attention\.qkv\.", r"\1.token_mixer.qkv."),
    (r"(\.blocks\.\d+)\.attention\.project\.", r"\1.token_mixer.proj."),
    (r"(\.blocks\.\d+)\.ffn\.", r"\1.convffn."),
    (r"\.attention_norm\.", ".pre_norm_mha.0."),
    (r"\.attention\.qkv\.", ".pre_norm_mha.1.qkv_proj."),
    (r"\.attention\.project\.", ".pre_norm_mha.1.out_proj."),
    (r"\.ffn_norm\.", ".pre_norm_ffn.0."),
    (r"\.ffn\.fc1\.", ".pre_norm_ffn.1."),
    (r"\.ffn\.fc2\.", ".pre_norm_ffn.4."),
    (r"^(\w+_encoder)\.layers\.", r"\1.transformer."),
    (r"^image_encoder\.stem\.conv1\.", "image_encoder.patch_emb.0.block."),
    (r"^image_encoder\.stem\.conv2\.", "image_encoder.patch_emb.1.block."),
    (r"^image_encoder\.stem\.conv3\.", "image_encoder.patch_emb.2.block.conv."),
    (r"^image_encoder\.stem\.", "image_encoder.patch_embed."),
    (r"^image_encoder\.class_token$", "image_encoder.cls_token"),
    (r"^image_encoder\.position$", "image_encoder.pos_embed.pos_embed.pos_embed"),
    (r"^image_encoder\.norm\.", "image_encoder.post_transformer_norm."),
    (r"^image_encoder\.project\.weight$", "image_encoder.classifier.proj"),
    (r"^image_encoder\.head\.conv\.", "image_encoder.conv_exp."),
    (r"^image_encoder\.head\.project\.weight$", "image_encoder.head.proj"),
    (r"^image_encoder\.", "image_encoder.model."),
    (r"^text_encoder\.token_embedding\.", "text_encoder.embedding_layer."),
    (r"^text_encoder\.position$", "text_encoder.positional_embedding.pos_embed.pos_embed"),
    (r"^text_encoder\.norm\.", "text_encoder.final_layer_norm."),
    (r"^text_encoder\.project\.weight$", "text_encoder.projection_layer"),
)
_PARTS = ("downsample", "position", "blocks")
_PART = re.compile(rf"image_encoder\.stages\.(\d+)\.({'|'.join(_PARTS)})\.")
_TEXT_MIXER = re.compile(r"text_encoder\.layers\.(\d+)\.token_mixer\.")


def text_mixers(names: Collection[str]) -> list[str]:
    """Return the indices of the text tower's Text-RepMixer layers, from this library's tensor names."""
    return sorted({found[1] for found in map(_TEXT_MIXER.match, names) if found})


class OfficialLayout(Layout):
    """The layout of `mobileclip_s0.pt` and Apple's other checkpoints.

    Source: the public repository apple/ml-mobileclip.
    """

    def rules_of(self, names: Collection[str]) -> Sequence[Rule]:
        """Return the renaming rules; Apple's code numbers downsamplings, positions and blocks across all stages."""
        parts = {(int(found[1]), _PARTS.index(found[2])) for found in map(_PART.match, names) if found}
        numbered = [
            (rf"\.model\.stages\.{stage}\.{_PARTS[part]}\.", f".model.network.{index}.{'' if part else 'proj.'}")
            for index, (stage, part) in enumerate(sorted(parts))
        ]
        mixed = [(rf"^(text_encoder\.layers\.{number})\.ffn\.", r"\1.convffn.") for number in text_mixers(names)]
        return [*mixed, *self.rules, *numbered]

    def check(self, tower: TowerSpec) -> None:
        """Raise for towers that Apple's code cannot build."""
        if isinstance(tower, ImageEncoderSpec) and tower.projection_bias:
            raise ValueError(
                "the official layout does not support the bias of this model's image projection (from an "
                "open_clip checkpoint); use the open_clip or mobileclip layout"
            )
        if isinstance(tower, ViTSpec) and tower.stem != "convolutional":
            raise ValueError("the official layout has no ViT with a patch stem; use the open_clip or mobileclip layout")
        if isinstance(tower, ViTSpec) and (tower.stem_padding, tower.norm_eps) != RELEASE_VIT:
            raise ValueError(
                f"Apple's ViT has stem_padding={RELEASE_VIT[0]} and norm_eps={RELEASE_VIT[1]}, but this ViT has "
                f"{tower.stem_padding} and {tower.norm_eps} (as in timm), so Apple's code would compute different "
                "embeddings from the same weights; use the open_clip or mobileclip layout"
            )

    def adapted(self, tower: ImageEncoderSpec, state: Mapping[str, Tensor]) -> ImageEncoderSpec:
        """Return `tower` with the stem padding and norm epsilon of Apple's code, and without a projection bias."""
        del state
        if isinstance(tower, ViTSpec) and tower.stem == "convolutional":
            padding, eps = RELEASE_VIT
            tower = attrs.evolve(tower, stem_padding=padding, norm_eps=eps)
        return attrs.evolve(tower, projection_bias=False)


layouts.add(
    "official",
    OfficialLayout(
        "official",
        image_prefix="image_encoder.model.",
        rules=_RULES,
        shapes=(
            (r"^image_encoder\.class_token$|^\w+_encoder\.position$", TWO_EMPTY_DIMS),
            (r"^\w+_encoder\.(head\.)?project\.weight$", TRANSPOSED),
        ),
    ),
)


TIMM_VIT = (0, 1e-6)  # stem padding, epsilon of the norms of a ViT with a convolutional stem

TIMM_RULES: Sequence[Rule] = (
    (r"(\.branches\.\d+|\.scale|\.large|\.small|\.ffn\.conv|\.stem\.conv\d)\.norm\.", r"\1.bn."),
    # Folded branches; a mixer or positional encoding that folds to a convolution has no submodule `conv`.
    (r"(\.stem\.\d+|\.downsample\.\d|\.head\.conv)\.conv\.(weight|bias)$", r"\1.reparam_conv.\2"),
    (r"(\.token_mixer|\.stages\.\d+\.position)\.(weight|bias)$", r"\1.reparam_conv.\2"),
    (r"(\.stages\.\d+\.position)\.conv\.", r"\1.pos_enc."),
    (r"(\.stages\.\d+)\.position\.", r"\1.pos_emb."),
    (r"(\.stages\.\d+\.downsample)\.", r"\1.proj."),
    (r"\.branches\.", ".conv_kxk."),
    (r"\.scale\.", ".conv_scale."),
    (r"\.skip\.", ".identity."),
    (r"\.(large|small)\.", r".\1_conv."),
    (r"\.squeeze_excite\.reduce\.", ".se.fc1."),
    (r"\.squeeze_excite\.expand\.", ".se.fc2."),
    (r"\.attention_scale\.", ".layer_scale_1."),
    (r"\.ffn_scale\.", ".layer_scale_2."),
    (r"(\.blocks\.\d+)\.attention\.qkv\.", r"\1.token_mixer.qkv."),
    (r"(\.blocks\.\d+)\.attention\.project\.", r"\1.token_mixer.proj."),
    (r"^(image_encoder\..*)\.ffn\.", r"\1.mlp."),
    (r"^(image_encoder\.layers\.\d+)\.attention_norm\.", r"\1.norm1."),
    (r"^(image_encoder\.layers\.\d+)\.ffn_norm\.", r"\1.norm2."),
    (r"^(image_encoder\.layers\.\d+)\.attention\.qkv\.", r"\1.attn.qkv."),
    (r"^(image_encoder\.layers\.\d+)\.attention\.project\.", r"\1.attn.proj."),
    (r"^image_encoder\.layers\.", "image_encoder.blocks."),
    (r"^image_encoder\.stem\.conv1\.", "image_encoder.patch_embed.backbone.0."),
    (r"^image_encoder\.stem\.conv2\.", "image_encoder.patch_embed.backbone.1."),
    (r"^image_encoder\.stem\.conv3\.", "image_encoder.patch_embed.backbone.2.conv."),
    (r"^image_encoder\.stem\.conv\.", "image_encoder.patch_embed.proj."),
    (r"^image_encoder\.class_token$", "image_encoder.cls_token"),
    (r"^image_encoder\.position$", "image_encoder.pos_embed"),
    (r"^image_encoder\.norm_before\.", "image_encoder.norm_pre."),
    (r"^image_encoder\.project\.", "image_encoder.head."),
    (r"^image_encoder\.head\.conv\.", "image_encoder.final_conv."),
    (r"^image_encoder\.head\.project\.", "image_encoder.head.fc."),
)
_TEXT_RULES: Sequence[Rule] = (
    (r"\.attention_norm\.", ".ln_1."),
    (r"\.ffn_norm\.", ".ln_2."),
    (r"\.attention\.qkv\.", ".attn.in_proj_"),
    (r"\.attention\.project\.", ".attn.out_proj."),
    (r"\.ffn\.fc1\.", ".mlp.c_fc."),
    (r"\.ffn\.fc2\.", ".mlp.c_proj."),
    (r"^text_encoder\.layers\.", "text_encoder.transformer.resblocks."),
    (r"^text_encoder\.position$", "text_encoder.positional_embedding"),
    (r"^text_encoder\.norm\.", "text_encoder.ln_final."),
    (r"^text_encoder\.project\.weight$", "text_encoder.text_projection"),
    (r"^text_encoder\.", "text."),
)


class OpenClipLayout(Layout):
    """The layout of `open_clip_pytorch_model.bin` and of the timm image towers in that file.

    Source: the public projects mlfoundations/open_clip and huggingface/pytorch-image-models.
    """

    def check(self, tower: TowerSpec) -> None:
        """Raise for towers that open_clip cannot build."""
        if isinstance(tower, MCtSpec):
            raise ValueError(
                "open_clip has no Text-RepMixer encoder, so its layout does not support this model's text tower; "
                "use the official or mobileclip layout"
            )
        if _timm_differs(tower) and (tower.stem_padding, tower.norm_eps) != TIMM_VIT:
            raise ValueError(
                f"timm's ViT with a convolutional stem has stem_padding={TIMM_VIT[0]} and norm_eps={TIMM_VIT[1]}, but "
                f"this ViT has {tower.stem_padding} and {tower.norm_eps} (as in Apple's code), so timm would compute "
                "different embeddings from the same weights; use the official or mobileclip layout"
            )

    def adapted(self, tower: ImageEncoderSpec, state: Mapping[str, Tensor]) -> ImageEncoderSpec:
        """Return `tower` with timm's stem padding and norm epsilon, and any nonzero projection bias of `state`."""
        if _timm_differs(tower):
            padding, eps = TIMM_VIT
            tower = attrs.evolve(tower, stem_padding=padding, norm_eps=eps)
        if not has_projection(tower):
            return tower
        bias = state.get(self._bias_name(tower))
        return attrs.evolve(tower, projection_bias=bias is not None and bool(bias.any()))

    def constants(self, tower: TowerSpec) -> dict[str, Tensor]:
        """Return a zero bias for the image projection, because timm's heads always have a bias."""
        if not isinstance(tower, ImageEncoderSpec) or tower.projection_bias or not has_projection(tower):
            return {}
        return {self._bias_name(tower): torch.zeros(tower.embedding_dim)}

    def _bias_name(self, tower: ImageEncoderSpec) -> str:
        return self.image_prefix + ("head.fc.bias" if isinstance(tower, MCiSpec) else "head.bias")


class TimmLayout(OpenClipLayout):
    """The layout of an image tower or classifier of `timm.create_model`: a subset of open_clip's layout.

    Source: the public project huggingface/pytorch-image-models.
    """

    def rules_of(self, names: Collection[str]) -> Sequence[Rule]:
        """Return the renaming rules; a classifier's head takes the name of the projection."""
        is_mci = any(name.startswith("image_encoder.stages.") for name in names)
        return [(r"^head\.", "image_encoder.head.project." if is_mci else "head."), *self.rules]


def has_projection(tower: TowerSpec) -> bool:
    """Return whether a tower ends with a projection."""
    return not isinstance(tower, (MCiSpec, ViTSpec)) or tower.projection


def _timm_differs(tower: TowerSpec) -> TypeGuard[ViTSpec]:
    return isinstance(tower, ViTSpec) and tower.stem == "convolutional"


IMAGE_SHAPES = ((r"^image_encoder\.class_token$", TWO_EMPTY_DIMS), (r"^image_encoder\.position$", ONE_EMPTY_DIM))
layouts.add(
    "open_clip",
    OpenClipLayout(
        "open_clip",
        image_prefix="visual.trunk.",
        text_prefix="text.",
        rules=(*TIMM_RULES, (r"^image_encoder\.", "visual.trunk."), *_TEXT_RULES),
        shapes=(*IMAGE_SHAPES, (r"^text_encoder\.project\.weight$", TRANSPOSED)),
    ),
)
layouts.add(
    "timm",
    TimmLayout(
        "timm",
        image_prefix="",
        text_prefix="",
        rules=(*TIMM_RULES, (r"^image_encoder\.", "")),
        shapes=IMAGE_SHAPES,
        has_bare_towers=True,
        advice="save only the image tower (model.image_encoder, or --tower image), use the open_clip layout, or",
    ),
)
