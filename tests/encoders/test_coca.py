"""CoCa: open_clip's with shared weights, its files, its captions, and towers that open_clip has none with."""

import itertools

import attrs
import pytest
import torch

import mobileclip
from mobileclip.cli import main
from mobileclip.encoders.checkpoints import layouts, load_model, save_model, skeleton
from mobileclip.encoders.coca import GenerationSpec, generate
from mobileclip.export import ExportSpec, export_model
from mobileclip.inputs import TextInput
from mobileclip.losses import CaptionLossSpec
from mobileclip.tensor_files import CheckpointError
from tests.encoders.small import COCA, COCA_VIT
from tests.errors import fails
from tests.lazily import lazily

open_clip = lazily("open_clip")

VOCAB_SIZE, START, END = 60, 58, 59


def architecture(*, context_length=15, vision_width=128):
    """Return open_clip's description of a small one; shapes say all of it."""
    text = {"context_length": context_length, "vocab_size": VOCAB_SIZE, "width": 64, "heads": 1, "layers": 2}
    vision = {"image_size": 32, "patch_size": 8, "width": vision_width, "head_width": 64, "layers": 2}
    pooling = {"attentional_pool": True, "attn_pooler_heads": 8, "attn_pooler_queries": 9, "output_tokens": True}
    return {
        "embed_dim": 64,
        "vision_cfg": {**vision, **pooling},
        "text_cfg": {**text, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**text, "layers": 3},
    }


def randomised(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name == "logit_scale":
                parameter.fill_(2.0)
            elif parameter.ndim > 1:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5 * (8 if "decoder.text_proj" in name else 1))
            else:
                parameter.add_(0.1 * noise)
    return model.eval()


def pair(tmp_path, *, aligned=False, **choices):
    """Return open_clip's model and ours of its file, in float64."""
    theirs = randomised(open_clip.CoCa(**architecture(**choices)))
    theirs.text.correct_cls_mask = aligned
    torch.save(theirs.state_dict(), tmp_path / "coca.pt")
    ours = load_model(tmp_path / "coca.pt", fold=False)
    if aligned:
        ours = load_model(tmp_path / "coca.pt", attrs.evolve(ours.spec, class_mask="aligned"), fold=False)
    return theirs.double(), ours.double()


def in_open_clip(spec, tensors):
    """Return tensors by our names as open_clip's, in its shapes."""
    layout = layouts["open_clip_coca"]
    named = {
        entry.name: tensors[name] if entry.reshape is None else entry.reshape.to_layout(tensors[name])
        for name, entry in layout.entries(spec, "training").items()
    }
    return layout.packed(named, spec)


def caption_loss(out):
    inputs = {name: getattr(out, name) for name in ("image", "text", "logit_scale", "logits", "labels")}
    return CaptionLossSpec().build()(**inputs)


def batch(size=3):
    """Return images, and ids whose texts end at different places."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 3, 32, 32, generator=generator, dtype=torch.float64)
    ids = torch.randint(1, START, (size, 15), generator=generator)
    ids[:, 0] = START
    for row, end in zip(ids, (14, 7, 3), strict=False):
        row[end], row[end + 1 :] = END, 0
    return images, ids


@pytest.mark.parametrize(
    "choices", [{}, {"vision_width": 64}, {"aligned": True}], ids=["widths differ", "one width", "aligned mask"]
)
def test_loss_logits_and_gradients_are_those_of_open_clip(tmp_path, choices):
    theirs, ours = pair(tmp_path, **choices)
    images, ids = batch()
    expected, found = theirs(images, ids), ours(images, ids)
    for name, one in (("logits", found.logits), ("image_features", found.image), ("text_features", found.text)):
        torch.testing.assert_close(one, expected[name], rtol=1e-9, atol=1e-9)
    wanted = open_clip.loss.CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)(**expected, output_dict=True)
    terms = caption_loss(found)
    torch.testing.assert_close(terms.contrastive, wanted["contrastive_loss"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(terms.distillation, wanted["caption_loss"], rtol=1e-9, atol=1e-9)
    sum(wanted.values()).backward()
    terms.total.backward()
    gradients = in_open_clip(ours.spec, {name: one.grad for name, one in ours.named_parameters()})
    assert gradients.keys() == dict(theirs.named_parameters()).keys()
    for name, one in theirs.named_parameters():
        torch.testing.assert_close(gradients[name], one.grad, rtol=1e-6, atol=1e-9, msg=lambda text, n=name: n + text)


@pytest.mark.parametrize("context_length", [76, 127, 255])
def test_open_clips_files_are_read_and_written(tmp_path, context_length):
    theirs = randomised(open_clip.CoCa(**architecture(context_length=context_length)))
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "coca.pt")
    ours = load_model(tmp_path / "coca.pt", fold=False)
    assert ours.spec.text.input.context_length == context_length
    save_model(ours, tmp_path / "again.pt", layout="open_clip_coca")
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert again.keys() == theirs.state_dict().keys()
    assert all(torch.equal(again[name], one) for name, one in theirs.state_dict().items())


@pytest.mark.parametrize("name", ["coca_ViT-B-32", "coca_ViT-L-14"])
def test_published_architectures_are_known_by_their_shapes(name):
    """Built without memory: names and shapes of all tensors, and the heads that no shape says."""
    config = open_clip.get_model_config(name)
    config.pop("custom_text")
    with torch.device("meta"):
        theirs = open_clip.CoCa(**config).state_dict()
    spec = layouts["open_clip_coca"].spec_of(theirs)
    ours = in_open_clip(spec, skeleton(spec, "training").state_dict())
    assert {key: one.shape for key, one in ours.items()} == {key: one.shape for key, one in theirs.items()}
    heads = (spec.text.num_heads, spec.decoder_heads, spec.pooler_heads)
    text, decoder, vision = (config[key] for key in ("text_cfg", "multimodal_cfg", "vision_cfg"))
    assert heads == (text["heads"], decoder["heads"], vision["attn_pooler_heads"])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return pair(tmp_path_factory.mktemp("coca"))


@pytest.mark.usefixtures("generating")
@pytest.mark.parametrize(
    "choices",
    [
        {"strategy": "top_k", "top_k": 1},
        {"strategy": "top_k", "top_k": 7},
        {"strategy": "top_p", "top_p": 0.9},
        {"strategy": "top_p", "top_p": 0.8, "temperature": 1.7},
    ],
    ids=["greedy", "top-k", "top-p", "temperature"],
)
def test_captions_are_those_of_open_clip_with_the_same_seed(models, choices):
    theirs, ours = models
    images, _ = batch(6)
    asked = {"generation_type" if name == "strategy" else name: value for name, value in choices.items()}
    special = {"sot_token_id": START, "eos_token_id": END, "pad_token_id": 0}
    torch.manual_seed(3)
    expected = theirs.generate(images, **asked, **special, seq_len=15, min_seq_len=4)
    spec = GenerationSpec(**choices, min_length=4, max_length=15)
    found = generate(ours, images, spec, generator=torch.Generator().manual_seed(3))
    assert found.tolist() == expected.tolist()
    assert len(set(map(tuple, found.tolist()))) > 1
    if choices.get("top_k") == 1:
        greedy = GenerationSpec(strategy="greedy", min_length=4, max_length=15)
        assert generate(ours, images, greedy).tolist() == expected.tolist()


@pytest.mark.parametrize("spec", [COCA, COCA_VIT], ids=["MCi", "ViT"])
def test_any_image_tower_of_ours_captions_learns_and_is_stored(tmp_path, spec):
    model = randomised(spec.build())
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 64, 64, generator=generator)
    ids = torch.randint(1, 598, (4, 12), generator=generator)
    # The padding is a word too, `!` of CLIP's vocabulary, which no later id sees.
    ids[0, 3], ids[2, 5:7] = model.spec.text.input.pad_id, model.spec.text.input.pad_id
    out = model(images.repeat_interleave(2, 0), ids)
    _, tokens = model.image_tokens(images)
    state = model.start(tokens, num_captions=2, max_length=12)
    steps = torch.stack([model.step(state, column) for column in ids.T[:-1]], dim=1)
    torch.testing.assert_close(steps, out.logits, rtol=1e-4, atol=1e-4)
    caption_loss(out).total.backward()
    assert [name for name, one in model.named_parameters() if one.grad is None] == []
    save_model(model, tmp_path / "coca.safetensors")
    again = load_model(tmp_path / "coca.safetensors", fold=False)
    assert again.spec == spec
    assert all(torch.equal(one, model.state_dict()[name]) for name, one in again.state_dict().items())


@torch.no_grad()
def test_wide_beams_find_the_best_caption_of_all():
    """By `sum of logits / ids`, over every caption of at most four ids that has no padding."""
    text = attrs.evolve(COCA_VIT.text, input=TextInput(context_length=6, vocab_size=8))
    model = randomised(attrs.evolve(COCA_VIT, text=text).build())
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    spec = GenerationSpec(strategy="beam", num_beams=64, min_length=1, max_length=4)
    found = generate(model, images, spec)
    rows = torch.tensor([[6, *others] for others in itertools.product(range(1, 8), repeat=3)])
    best = []
    for image in images:
        logits = model(image.expand(len(rows), -1, -1, -1), rows).logits
        sums = logits.gather(2, rows[:, 1:, None])[..., 0].cumsum(dim=1)
        scored = {}
        for row, totals in zip(rows.tolist(), sums.tolist(), strict=True):
            length = row.index(7) + 1 if 7 in row else 4
            scored[tuple(row[:length])] = totals[length - 2] / length
        best.append(max(scored, key=scored.get))
    assert [tuple(row[: len(one)].tolist()) for row, one in zip(found, best, strict=True)] == best


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"text": attrs.evolve(COCA.text, causal=False)}, ()),
        ({"text": attrs.evolve(COCA.text, embedding_dim=16)}, ("16",)),
        ({"decoder_heads": 7}, ("7",)),
    ],
)
def test_specs_refuse(changes, named):
    with fails(ValueError, *named):
        attrs.evolve(COCA, **changes)


def test_commands_convert_a_captioner_and_say_what_takes_none(tmp_path):
    _, model = pair(tmp_path)
    model = model.float()
    save_model(model, tmp_path / "coca.safetensors")
    main(["convert", str(tmp_path / "coca.safetensors"), "-o", str(tmp_path / "again.pt"), "--to", "open_clip_coca"])
    again = load_model(tmp_path / "again.pt", model.spec, fold=False)
    assert all(torch.equal(one, model.state_dict()[name]) for name, one in again.state_dict().items())
    with fails(CheckpointError, "coca.safetensors"):
        load_model(tmp_path / "coca.safetensors", tower="image")
    with fails(ValueError, "coca.safetensors"):
        mobileclip.load(tmp_path / "coca.safetensors")
    with fails(ValueError, "30", "15"):
        generate(model, torch.zeros(1, 3, 32, 32))
    with fails(ValueError):
        export_model(tmp_path / "coca.safetensors", ExportSpec(output=tmp_path / "exported"))
