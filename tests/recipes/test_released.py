"""`released` beside what the released scripts run: open_clip's models, groups of parameters, first step, pixels.

The scripts train with open_clip at commit 7260a46 (17 March 2025), and with a patch that changes neither models,
optimiser nor evaluation. Version 3.3.0 has the same models, groups, defaults and schedule.
"""

import ast
import importlib.util
import io
from contextlib import redirect_stdout
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
from mobileclip.serialization import from_json, to_json
from mobileclip.training import RunSpec, World, build_objective, decay_groups
from tests.blocks.filling import noise
from tests.data.made_samples import encoded
from tests.lazily import lazily
from tests.recipes.running import run_named, shown_run

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
    **{f"train_{size.replace('-', '').lower()}": f"MobileCLIP2-{size}" for size in ("S3", "S4", "L-14")},
    **{f"train_mobileclip2_{size.lower()}": f"MobileCLIP2-{size}" for size in ("S0", "S2", "S3", "S4")},
    "train_mobileclip2_b": "MobileCLIP-B",
    "train_mobileclip2_l14": "MobileCLIP2-L-14",
}
SMALL = ["train_b", "train_s1"]
LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name not in SMALL]


# As of CLIP's ids, the two highest begin and end a text.
NUM_IDS = 64


@cache
def released(name):
    """A recipe's run as it was released, as the command line shows it."""
    with redirect_stdout(io.StringIO()) as shown:
        run_named(name, "released", "--show")
    return from_json(shown.getvalue(), RunSpec)


def is_plain(spec):
    return isinstance(spec.image, ViTSpec) and spec.image.initialization == "open_clip"


def entries(spec):
    """Our names of a model's parameters with open_clip's and how it holds them."""
    if not is_plain(spec):
        return layouts["open_clip"].entries(spec, "training")
    text = layouts["open_clip"].entries(spec.text, "training")
    # open_clip's own image tower has the layers of its text tower, whose names the layout knows.
    image = {"class_token": "class_embedding", "position": "positional_embedding", "stem.conv.weight": "conv1.weight"}
    norms = {"norm_before": "ln_pre", "norm": "ln_post"}
    image |= {f"{ours}.{kind}": f"{norms[ours]}.{kind}" for ours in norms for kind in ("weight", "bias")}
    image |= {ours: one.name.removeprefix("text.") for ours, one in text.items() if ours.startswith("layers.")}
    entry = type(text["position"])
    named = {f"image_encoder.{ours}": entry(f"visual.{theirs}", None) for ours, theirs in image.items()}
    named |= {f"text_encoder.{ours}": entry(one.name.removeprefix("text."), one.reshape) for ours, one in text.items()}
    project = entry("visual.proj", text["project.weight"].reshape)
    return named | {"image_encoder.project.weight": project, "logit_scale": entry("logit_scale", None)}


@cache
def is_excluded():
    """The rule of open_clip's training, from a parameter and its name to whether it is left out of weight decay."""
    source = Path(importlib.util.find_spec("open_clip_train.main").origin).read_text(encoding="utf-8")
    assigned = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assign)]
    (rule,) = (ast.unparse(node.value) for node in assigned if ast.unparse(node.targets[0]) == "exclude")
    return eval(rule)


@cache
def arguments_of(model):
    """What open_clip's command line makes of a script's flags."""
    return params.parse_args([*FLAGS, "--model", model])


def test_the_research_code_s_names_of_s0_decay_the_same():
    """open_clip has no text tower like S0's; under the research code's names and shapes its rule says the same."""
    run = released("train_s0")
    spec = attrs.evolve(run.model, image=attrs.evolve(run.model.image, projection_bias=False))
    with torch.device("meta"):
        ours = spec.build()
    names, exclude = layouts["official"].entries(spec, "training"), is_excluded()
    expected = [set(), set()]
    for one, value in ours.named_parameters():
        expected[exclude(names[one].name, held(value, names[one]))].add(one)
    assert [set(group) for group in decay_groups(ours, run.training.optimizer.decayed)] == expected


def held(tensor, entry):
    """A tensor as open_clip holds it."""
    if entry.name == "logit_scale":
        return tensor.reshape(())  # the only parameter that open_clip holds without a dimension
    return tensor if entry.reshape is None else entry.reshape.to_layout(tensor)


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_the_first_step_is_open_clips(name, monkeypatch):
    """Of models of full width, one block a stage and few ids; embeddings are equal, and so is what the step changes."""
    run = released(name)
    spec = shallow(run.model)
    spec = attrs.evolve(spec, text=attrs.evolve(spec.text, input=attrs.evolve(spec.text.input, vocab_size=NUM_IDS)))
    ours, theirs = spec.build().eval(), shallow_open_clip(MODELS[name], spec, monkeypatch)
    names = entries(spec)
    theirs.load_state_dict({names[one].name: held(value, names[one]) for one, value in ours.state_dict().items()})
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
        counterparts[names[one].name].grad = held(parameter.grad, names[one]).contiguous()
    before = {one: value.clone() for one, value in ours.named_parameters()}
    optimizer.step()
    other.step()
    for one, parameter in ours.named_parameters():
        expected = counterparts[names[one].name].detach() - held(before[one], names[one])
        change = held(parameter.detach() - before[one], names[one])
        torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-5 * rate)


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
    groups = [{"params": [], "weight_decay": arguments.wd}, {"params": [], "weight_decay": 0.0}]
    for key, value in model.named_parameters():
        groups[is_excluded()(key, value)]["params"].append(value)
    betas = arguments.beta1, arguments.beta2
    return torch.optim.AdamW(groups, lr=arguments.lr, betas=betas, eps=arguments.eps, foreach=False)


@pytest.mark.parametrize("name", [*MODELS, "train_s0"])
def test_the_numbers_are_those_that_open_clip_reads_from_the_scripts(name):
    training, arguments = released(name).training, arguments_of(MODELS.get(name, "MobileCLIP-S0"))
    optimizer, schedule = training.optimizer, training.schedule
    for ours, theirs in (("beta1", "beta1"), ("beta2", "beta2"), ("eps", "eps"), ("weight_decay", "wd")):
        assert getattr(optimizer, ours) == getattr(arguments, theirs)
    assert optimizer.eps == (1e-6 if name in PLAIN else 1e-8)
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


@pytest.mark.parametrize("name", [pytest.param("train_s1", marks=pytest.mark.slow), "train_b"])
def test_pixels_of_training_are_those_of_the_patched_loader(name):
    """Stored crop, bicubic; stored operations; to [0, 1]; then open_clip's mean and deviation."""
    from torchvision.transforms.autoaugment import _apply_op

    run = released(name)
    size, image = run.data.image.size, Image.open(io.BytesIO(encoded(400, 300)))
    crop, operations = (20, 30, 200, 240), ((9, 1.27), (12, 0.0))
    pixels = datacompdr_augmentation(size).apply(image, AugmentationParams(crop=crop, operations=operations))

    expected = TF.resized_crop(image, *crop, [size, size], TF.InterpolationMode.BICUBIC)
    for number, magnitude in operations:
        expected = _apply_op(expected, OPERATIONS[number].name, magnitude, TF.InterpolationMode.NEAREST, None)
    theirs = open_clip.create_model(MODELS[name], device="meta").visual.preprocess_cfg
    expected = TF.normalize(TF.to_tensor(expected), theirs["mean"], theirs["std"])

    objective = build_objective(run.training.loss, spec=run.training, model=shallow(run.model).build(), world=World())
    made = objective.normalized(torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None])
    torch.testing.assert_close(made[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["train_b", "train_s2", "train_mobileclip2_b"])
def test_what_was_released_once_is_released_again_and_flags_change_it(name, capsys, tmp_path):
    run = released(name)
    assert run.data.image == run.model.image.input
    (tmp_path / "run.json").write_text(to_json(run))
    assert shown_run(capsys, name, "released", tmp_path / "run.json") == run
    flags = "--data.image.interpolation bilinear --training.optimizer.eps 1e-7"
    run = shown_run(capsys, name, "released", *flags.split())
    assert run.model.image.input.interpolation == run.data.image.interpolation == "bilinear"
    assert run.training.optimizer.eps == 1e-7
    assert is_plain(run.model) == (name in PLAIN)
