"""Our image encoders and timm's with the same weights."""

from functools import partial

import torch

from mobileclip.encoders import AttentionSpec, MCiSpec, RepMixerSpec, StageSpec, ViTSpec
from mobileclip.encoders.checkpoints import layouts
from mobileclip.inputs import ImageInput
from tests.blocks.filling import filled
from tests.lazily import lazily

timm = lazily("timm")

DIMS = (16, 32, 64)
DEPTHS = (2, 1, 2)


def with_our_weights(encoder, model):
    """timm's model with the weights of our encoder, as open_clip's layout names them; evaluation mode."""
    spec, layout, own = encoder.spec, layouts["open_clip"], encoder.state_dict()
    state = layout.constants(spec)
    for name, entry in layout.entries(spec, "training").items():
        tensor = own[name]
        state[entry.name] = entry.reshape.to_layout(tensor) if entry.reshape else tensor
    model.load_state_dict({name.removeprefix(layout.image_prefix): tensor for name, tensor in state.items()})
    return model.eval()


def mci_pair(generation):
    """A small MCi of MobileCLIP (1) or MobileCLIP2 (2), ours and timm's."""
    encoder = filled(_our_mci(generation).build())
    return encoder, with_our_weights(encoder, _timms_mci(generation))


def vit_pair(stem):
    """A small ViT like MobileCLIP-B's or like ViT-L/14, by its stem, ours and timm's."""
    convolutional = stem == "convolutional"
    spec = ViTSpec(
        width=32,
        depth=3,
        num_heads=2,
        stem=stem,
        stem_padding=0,
        class_position=not convolutional,
        norm_before=not convolutional,
        norm_eps=1e-6,
        embedding_dim=24,
        input=ImageInput(size=128),
    )
    encoder = filled(spec.build())
    return encoder, with_our_weights(encoder, _timms_vit(spec))


def _our_mci(generation):
    first = generation == 1
    mixers = (RepMixerSpec(), RepMixerSpec(), AttentionSpec(norm="batch" if first else "layer"))
    return MCiSpec(
        stages=tuple(
            StageSpec(dim=dim, depth=depth, mixer=mixer, squeeze_excite=first and index == 2)
            for index, (dim, depth, mixer) in enumerate(zip(DIMS, DEPTHS, mixers, strict=True))
        ),
        ffn_ratio=3.0 if first else 4.0,
        stem_scale_branch=first,
        embedding_dim=24,
        input=ImageInput(size=64),
    )


def _timms_mci(generation):
    first = generation == 1
    return timm.models.FastVit(
        layers=DEPTHS,
        embed_dims=DIMS,
        mlp_ratios=(3.0 if first else 4.0,) * 3,
        downsamples=(False, True, True),
        se_downsamples=(False, False, first),
        token_mixers=("repmixer", "repmixer", "attention"),
        pos_embs=(None, None, partial(timm.models.fastvit.RepConditionalPosEnc, spatial_shape=(7, 7))),
        lkc_use_act=True,
        stem_use_scale_branch=first,
        norm_layer=torch.nn.BatchNorm2d if first else partial(timm.layers.LayerNorm2d, eps=1e-5),
        num_classes=24,
    )


def _timms_vit(spec):
    model = partial(
        timm.models.VisionTransformer,
        img_size=spec.input.size,
        patch_size=spec.patch_size,
        embed_dim=spec.width,
        depth=spec.depth,
        num_heads=spec.num_heads,
        num_classes=spec.embedding_dim,
        norm_layer=partial(torch.nn.LayerNorm, eps=spec.norm_eps),
        no_embed_class=not spec.class_position,
        pre_norm=spec.norm_before,
        dynamic_img_size=True,
    )
    if spec.stem == "patch":
        return model()
    hidden = spec.width // 4
    stem = timm.models.vision_transformer_hybrid.ConvStem(
        channels=(hidden, hidden, spec.width),
        stride=(4, 2, 2),
        kernel_size=(4, 2, 2),
        padding=0,
        act_layer=torch.nn.GELU,
    )
    return model(
        patch_size=1, embed_layer=partial(timm.models.vision_transformer_hybrid.HybridEmbed, backbone=stem, proj=False)
    )
