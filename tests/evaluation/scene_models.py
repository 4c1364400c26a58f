"""Pictures with labels and captions of their own, and a small model that open_clip can hold too."""

import io
import itertools
import json
from collections import Counter
from functools import cache, partial

import attrs
import numpy as np

from mobileclip import specs
from mobileclip.data import ImageTextSample
from mobileclip.encoders import DualEncoderSpec, TextTransformerSpec, save_model
from mobileclip.evaluation import BenchmarkSample
from mobileclip.inputs import ImageInput
from mobileclip.recipes.tiny import COLOURS, SHAPES, scenes
from tests.evaluation.public_layout import write_benchmark
from tests.lazily import lazily

timm = lazily("timm")

CLASSES = tuple(f"{colour} {shape}" for colour, shape in itertools.product(COLOURS, SHAPES))
TEMPLATES = ("a drawing of a {}", "{} on the left")
COUNT = 300
DIMS = (16, 32, 64, 128)


def small_spec(*, causal=False):
    stages = zip(specs.mci0().stages, DIMS, strict=True)
    stages = tuple(attrs.evolve(stage, dim=dim, depth=1) for stage, dim in stages)
    about = {"embedding_dim": 48, "projection_bias": True, "input": ImageInput(size=64)}
    text = TextTransformerSpec(width=32, num_heads=2, depth=2, embedding_dim=48, causal=causal)
    return DualEncoderSpec(image=attrs.evolve(specs.mci0(), stages=stages, **about), text=text)


def fastvit_of_scenes(pretrained=False, **options):
    """The image tower of `small_spec` as timm has it."""
    position = partial(timm.models.fastvit.RepConditionalPosEnc, spatial_shape=(7, 7))
    options = {name: options[name] for name in options if name in {"num_classes", "global_pool", "drop_path_rate"}}
    options |= {"mlp_ratios": (3, 3, 3, 3), "se_downsamples": (False, False, True, True), "lkc_use_act": True}
    options |= {"pos_embs": (None, None, None, position), "token_mixers": (*["repmixer"] * 3, "attention")}
    return timm.models.FastVit(layers=(1, 1, 1, 1), embed_dims=DIMS, **options)


@cache
def register():
    """Let timm build the tower by its name."""
    timm.models.register_model(fastvit_of_scenes)


def scene_images(count, seed=0):
    """Return drawn scenes with all their captions, and the class of each: the thing on the left."""
    rng = np.random.default_rng(seed)
    samples, labels = [], []
    for number, scene in enumerate(itertools.islice(scenes(seed), count)):
        stream = io.BytesIO()
        scene.draw(rng, width=120, height=90).save(stream, "PNG" if number % 2 else "JPEG")
        samples.append(ImageTextSample(key=f"{number:05d}", captions=scene.captions(), image=stream.getvalue()))
        labels.append(CLASSES.index(" ".join(scene.left[1:])))
    return samples, labels


def write_scene_benchmarks(folder, count=COUNT):
    """Write them as a data set of classes and one of captions, and return both folders."""
    samples, labels = scene_images(count)
    pairs = zip(samples, labels, strict=True)
    labelled = [BenchmarkSample(key=sample.key, image=sample.image, label=label) for sample, label in pairs]
    folders = folder / "wds_scenes_test", folder / "wds_scene-captions_test"
    write_benchmark(folders[0], labelled, class_names=CLASSES, templates=TEMPLATES, samples_per_shard=120)
    write_benchmark(folders[1], captioned_samples(samples), samples_per_shard=120)
    return folders


def captioned_samples(samples):
    """Return pictures with those of their captions that no other picture has, whatever the case of letters."""
    count = Counter(caption.lower() for sample in samples for caption in sample.captions)
    own = [(sample, tuple(text for text in sample.captions if count[text.lower()] == 1)) for sample in samples]
    return [BenchmarkSample(key=one.key, image=one.image, captions=captions) for one, captions in own if captions]


def scene_texts(samples, labels):
    """Return the captions of each picture and the prompts of its class."""
    prompts = [tuple(template.format(CLASSES[label]) for template in TEMPLATES) for label in labels]
    return [(*sample.captions, *prompt) for sample, prompt in zip(samples, prompts, strict=True)]


def write_for_open_clip(model, folder):
    """Write the model as open_clip loads it by `local-dir:FOLDER`."""
    register()
    folder.mkdir()
    spec = model.spec
    save_model(model, folder / "open_clip_model.safetensors", layout="open_clip")
    size, text = spec.image.input.size, spec.text
    tower = {"timm_model_name": "fastvit_of_scenes", "timm_model_pretrained": False, "timm_pool": "avg"}
    layers = {"width": text.width, "heads": text.num_heads, "layers": text.depth, "no_causal_mask": not text.causal}
    vision_cfg = {**tower, "timm_proj": None, "image_size": size}
    text_cfg = {"context_length": 77, "vocab_size": 49408, **layers}
    model_cfg = {"embed_dim": spec.image.embedding_dim, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
    preprocess_cfg = {"mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear"}
    config = {"model_cfg": {**model_cfg, "custom_text": True}, "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"
