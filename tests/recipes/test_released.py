"""`released` beside what the released scripts run: open_clip's models, groups of parameters, first step, pixels.

The scripts train with open_clip at commit 7260a46 (17 March 2025), and with a patch that changes neither models,
optimiser nor evaluation. Version 3.3.0 has the same models, groups, defaults and schedule.
"""

import ast
import importlib.util
from functools import cache, partial
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from PIL import Image

from mobileclip.data import AugmentationParams, datacompdr_augmentation
from mobileclip.data.augmentation.operations import OPERATIONS
from mobileclip.encoders import ViTSpec
from mobileclip.encoders.checkpoints import layouts
from mobileclip.recipes.tiny import shallow
from mobileclip.serialization import to_json
from mobileclip.training import World, build_objective, decay_groups
from tests.blocks.filling import noise
from tests.lazily import lazily
from tests.recipes.running import shown_run

open_clip, timm = lazily("open_clip"), lazily("timm")
params, scheduler = lazily("open_clip_train.params"), lazily("open_clip_train.scheduler")
TF = lazily("torchvision.transforms.functional")

FLAGS = (  # that all five scripts share
    "--warmup 1000 --precision amp --lr 1.e-3 --beta2 0.95 --wd 0.2 --grad-clip-norm 1.0 --dataset-type webdataset "
    "--dataset-resampled --local-loss --gather-with-grad --grad-checkpointing"
).split()
PLAIN = ["train_vit_b16_12m ensemble", "train_vit_b16_12m plain", "train_b", "train_b_lt"]
# S3, S4 and L-14 on DataCompDR-1B have the architectures of MobileCLIP2.
MODELS = dict.fromkeys(PLAIN, "ViT-B-16") | {
    "train_b_dfndr12m all_sets": "MobileCLIP-B",
    "train_s1": "MobileCLIP-S1",
    "train_s2": "MobileCLIP-S2",
    "train_s3": "MobileCLIP2-S3",
    "train_s4": "MobileCLIP2-S4",
    "train_l14": "MobileCLIP2-L-14",
    "train_mobileclip2_s0": "MobileCLIP2-S0",
    "train_mobileclip2_s2": "MobileCLIP2-S2",
    "train_mobileclip2_b": "MobileCLIP-B",
    "train_mobileclip2_s3": "MobileCLIP2-S3",
    "train_mobileclip2_s4": "MobileCLIP2-S4",
    "train_mobileclip2_l14": "MobileCLIP2-L-14",
}
SMALL = ["train_b", "train_b_dfndr12m all_sets", "train_s1"]
LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name not in SMALL]


# As of CLIP's ids, the two highest begin and end a text.
NUM_IDS = 64

_SHOWN = {}


@pytest.fixture
def released(capsys):
    """A recipe's run as it was released, as the command line shows it."""

    def show(name, *flags):
        if (name, flags) not in _SHOWN:
            _SHOWN[name, flags] = shown_run(capsys, name, "released", *flags)
        return _SHOWN[name, flags]

    return show


@cache
def theirs_without_weights(name):
    """open_clip's model of a recipe, whose parameters have shapes alone, and never had values."""
    with torch.device("meta"):
        return open_clip.create_model(MODELS[name], device="meta")


def is_plain(spec):
    return isinstance(spec.image, ViTSpec) and spec.image.initialization == "open_clip"


def entries(spec):
    """Our names of a model's parameters with open_clip's and how it holds them."""
    if not is_plain(spec):
        return layouts["open_clip"].entries(spec, "training")
    text = layouts["open_clip"].entries(spec.text, "training")
    # open_clip's own image tower has the layers of its text tower, whose names the layout knows.
    image = {
        "class_token": ("class_embedding", None),
        "position": ("positional_embedding", None),
        "project.weight": ("proj", text["project.weight"].reshape),
        "stem.conv.weight": ("conv1.weight", None),
    } | {
        f"{ours}.{kind}": (f"{theirs}.{kind}", None)
        for ours, theirs in (("norm_before", "ln_pre"), ("norm", "ln_post"))
        for kind in ("weight", "bias")
    }
    layers = {name: entry.name for name, entry in text.items() if name.startswith("layers.")}
    image |= {name: (theirs.removeprefix("text."), None) for name, theirs in layers.items()}
    entry = type(text["position"])
    named = {f"image_encoder.{ours}": entry(f"visual.{theirs}", shape) for ours, (theirs, shape) in image.items()}
    named |= {f"text_encoder.{ours}": entry(one.name.removeprefix("text."), one.reshape) for ours, one in text.items()}
    return named | {"logit_scale": entry("logit_scale", None)}


@cache
def is_excluded():
    """The rule of open_clip's training, from a parameter and its name to whether it is left out of weight decay."""
    source = Path(importlib.util.find_spec("open_clip_train.main").origin).read_text(encoding="utf-8")
    rules = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "exclude"
    ]
    (rule,) = rules
    return eval(compile(ast.Expression(rule), "open_clip_train.main", "eval"))


@cache
def arguments_of(model):
    """What open_clip's command line makes of a script's flags."""
    return params.parse_args([*FLAGS, "--model", model])


def test_the_research_code_s_names_of_s0_decay_the_same(released):
    """open_clip has no text tower like S0's; under the research code's names and shapes its rule says the same."""
    run = released("train_s0")
    spec = attrs.evolve(run.model, image=attrs.evolve(run.model.image, projection_bias=False))
    with torch.device("meta"):
        ours = spec.build()
    names, exclude = layouts["official"].entries(spec, "training"), is_excluded()
    expected = [set(), set()]
    for one, value in ours.named_parameters():
        entry = names[one]
        theirs = value if entry.reshape is None else entry.reshape.to_layout(value)
        expected[exclude(entry.name, theirs)].add(one)
    assert [set(group) for group in decay_groups(ours, run.training.optimizer.decayed)] == expected


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_the_first_step_is_open_clips(name, released, monkeypatch):
    """Of models of full width, one block a stage and few ids; embeddings are equal, and so is what the step changes."""
    run = released(name)
    spec = shallow(run.model)
    spec = attrs.evolve(spec, text=attrs.evolve(spec.text, input=attrs.evolve(spec.text.input, vocab_size=NUM_IDS)))
    torch.manual_seed(0)
    ours, theirs = spec.build().eval(), shallow_open_clip(MODELS[name], spec, monkeypatch)
    names = entries(spec)

    def held(tensor, one):
        reshape = names[one].reshape
        if one == "logit_scale":
            return tensor.reshape(())  # the only parameter that open_clip holds without a dimension
        return tensor if reshape is None else reshape.to_layout(tensor)

    state = {names[one].name: held(value, one) for one, value in ours.state_dict().items()}
    theirs.load_state_dict(state)
    size = spec.image.input.size
    images, texts = noise(2, 3, size, size), torch.zeros(2, spec.text.input.context_length, dtype=torch.long)
    for row, text in zip(texts, ([7, 3], [4, 1, 5, 9, 2]), strict=True):
        row[: len(text) + 2] = torch.tensor([NUM_IDS - 2, *text, NUM_IDS - 1])
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_image(images), theirs.encode_image(images), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.encode_text(texts), theirs.encode_text(texts), rtol=1e-4, atol=1e-4)

    optimizer, other = run.training.optimizer.build(ours), open_clips_optimizer(theirs, arguments_of(MODELS[name]))
    rate = run.training.schedule.peak  # the first step's own is so low that decay is lost in rounding
    for group in (*optimizer.param_groups, *other.param_groups):
        group["lr"] = rate
    counterparts, generator = dict(theirs.named_parameters()), torch.Generator().manual_seed(1)
    for one, parameter in ours.named_parameters():
        # Small ones, as they are at the clipped norm: there eps decides.
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 1e-6
        counterparts[names[one].name].grad = held(parameter.grad, one).contiguous()
    before = {one: value.clone() for one, value in ours.named_parameters()}
    optimizer.step()
    other.step()
    for one, parameter in ours.named_parameters():
        change = parameter.detach() - before[one]
        expected = counterparts[names[one].name].detach() - held(before[one], one)
        torch.testing.assert_close(held(change, one), expected, rtol=1e-4, atol=1e-5 * rate)


def shallow_open_clip(name, spec, monkeypatch):
    config = open_clip.get_model_config(name)
    config["text_cfg"] |= {"layers": spec.text.depth, "vocab_size": spec.text.input.vocab_size}
    if is_plain(spec):
        config["vision_cfg"]["layers"] = spec.image.depth
        return open_clip.CLIP(**config).eval()
    depth = {"depth": 1} if isinstance(spec.image, ViTSpec) else {"layers": (1,) * len(spec.image.stages)}
    monkeypatch.setattr("timm.create_model", partial(timm.create_model, **depth))
    config.pop("custom_text", None)
    return open_clip.CustomTextCLIP(**config).eval()


def open_clips_optimizer(model, arguments):
    """AdamW as open_clip's training makes it."""
    exclude = is_excluded()
    named = list(model.named_parameters())
    groups = [
        {"params": [value for key, value in named if exclude(key, value)], "weight_decay": 0.0},
        {"params": [value for key, value in named if not exclude(key, value)], "weight_decay": arguments.wd},
    ]
    return torch.optim.AdamW(
        groups, lr=arguments.lr, betas=(arguments.beta1, arguments.beta2), eps=arguments.eps, foreach=False
    )


@pytest.mark.parametrize("name", [*MODELS, "train_s0"])
def test_the_numbers_are_those_that_open_clip_reads_from_the_scripts(name, released):
    training, arguments = released(name).training, arguments_of(MODELS.get(name, "MobileCLIP-S0"))
    optimizer, schedule = training.optimizer, training.schedule
    assert (optimizer.beta1, optimizer.beta2) == (arguments.beta1, arguments.beta2)
    assert optimizer.eps == arguments.eps == (1e-6 if name in PLAIN else 1e-8)
    assert optimizer.weight_decay == arguments.wd
    assert training.max_gradient_norm == arguments.grad_clip_norm
    # None of these has a flag there: a scale of at least 1, no average, no augmentation of the student's images.
    assert (training.min_logit_scale, training.ema_decay, training.range_augment) == (1.0, None, None)
    data = released(name).data
    assert (data.sampling, data.shuffle_buffer) == ("with_replacement", 5_000)
    # Float16 in autocast with a scaled loss.
    assert (arguments.precision, training.precision) == ("amp", "float16")
    if name == "train_b_lt":
        return  # no script has its constant part
    holder = torch.optim.SGD([torch.zeros(1)], lr=0.0)
    rate = scheduler.cosine_lr(holder, arguments.lr, arguments.warmup, schedule.total_steps)
    for step in (0, 1, 999, 1_000, 1_001, 12_345, schedule.total_steps - 1):
        assert schedule.learning_rate(step) == pytest.approx(rate(step), rel=1e-9)


def picture(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", ["train_s1", "train_b"])
def test_pixels_of_training_are_those_of_the_patched_loader(name, released):
    """Stored crop, bicubic; stored operations; to [0, 1]; then open_clip's mean and deviation."""
    from torchvision.transforms.autoaugment import _apply_op

    run = released(name)
    size, image = run.data.image.size, picture(400, 300)
    crop, operations = (20, 30, 200, 240), ((9, 1.27), (12, 0.0))
    stored = AugmentationParams(crop=crop, operations=operations)
    pixels = datacompdr_augmentation(size).apply(image, stored)

    expected = TF.resized_crop(image, *crop, [size, size], TF.InterpolationMode.BICUBIC)
    for number, magnitude in operations:
        expected = _apply_op(expected, OPERATIONS[number].name, magnitude, TF.InterpolationMode.NEAREST, None)
    theirs = theirs_without_weights(name).visual.preprocess_cfg
    expected = TF.normalize(TF.to_tensor(expected), theirs["mean"], theirs["std"])

    objective = build_objective(run.training.loss, spec=run.training, model=shallow(run.model).build(), world=World())
    made = objective.normalized(torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None])
    torch.testing.assert_close(made[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["train_b", "train_s2", "train_mobileclip2_b"])
def test_what_was_released_once_is_released_again(name, released, capsys, tmp_path):
    run = released(name)
    assert run.data.image == run.model.image.input
    (tmp_path / "run.json").write_text(to_json(run))
    assert shown_run(capsys, name, "released", tmp_path / "run.json") == run


def test_flags_change_what_is_released(released):
    run = released("train_b", "--data.image.interpolation", "bilinear", "--training.optimizer.eps", "1e-7")
    assert run.model.image.input.interpolation == run.data.image.interpolation == "bilinear"
    assert run.training.optimizer.eps == 1e-7
    assert is_plain(run.model)
