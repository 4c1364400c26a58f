import io
import json
import shutil

import attrs
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mobileclip.interop.open_clip_models import OpenClipSource, coca_of, load_open_clip
from mobileclip.reinforce import CaptionerSpec, CocaCaptioner
from mobileclip.reinforce.captioners import captioners as registry
from mobileclip.serialization import from_json
from mobileclip.tensor_files import weights_sha256
from tests.contracts.captioners import check_captioner
from tests.errors import fails
from tests.lazily import lazily
from tests.no_float64 import no_float64
from tests.reinforce.conftest import picture
from tests.reinforce.open_clip_models import CONFIGS
from tests.reinforce.plugins import install_plugin

open_clip = lazily("open_clip")

START, END = 49406, 49407


@pytest.fixture(scope="module")
def spec(tiny):
    return attrs.evolve(tiny.captioner, num_captions=3, max_batch=4)


@pytest.fixture(scope="module")
def captioner(spec):
    return spec.build()


@pytest.fixture(scope="module")
def model(spec, tmp_path_factory):
    """open_clip's own, of a folder of its layout."""
    place = tmp_path_factory.mktemp("reference")
    (place / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIGS["tiny_coca"]}))
    shutil.copy(spec.pretrained, place / "open_clip_model.safetensors")
    return open_clip.create_model(f"local-dir:{place}", require_pretrained=True).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images():
    return [Image.open(io.BytesIO(picture(seed, width=40 + 9 * seed))) for seed in range(8)]


def opened(model, pretrained):
    return load_open_clip(OpenClipSource(model=str(model), pretrained=pretrained))


@torch.inference_mode()
def test_logits_are_those_of_open_clip(spec, model):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(3, 3, 32, 32, generator=generator)
    ids = torch.randint(1, START, (6, 20), generator=generator)
    ids[:, 0] = START
    coca = coca_of(opened(spec.model, spec.pretrained))
    state = coca.start(coca.image_tokens(pixels)[1], num_captions=2, max_length=20)
    ours = torch.stack([coca.step(state, column) for column in ids.T], dim=1)
    theirs = model(pixels.repeat_interleave(2, 0), ids, output_labels=False)["logits"]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert theirs.std() > 1
    # The image and the earlier ids matter, or the comparison would not.
    other = model(pixels.flip(0).repeat_interleave(2, 0), ids, output_labels=False)["logits"]
    assert (other - theirs).abs().max() > 0.1


@pytest.mark.usefixtures("generating")
def test_open_clips_generate_agrees(spec, model, images):
    captioner = attrs.evolve(spec, top_p=1e-9, num_captions=2).build()
    pixels = torch.stack([captioner._transform(image) for image in images])
    theirs = model.generate(
        pixels, generation_type="top_p", top_p=1e-9, seq_len=spec.max_length, fixed_output_length=True
    )
    texts = [open_clip.decode(row).split("<end_of_text>")[0].split("<start_of_text>")[-1] for row in theirs]
    cut = [text.split(".")[0].strip() for text in texts]
    assert captioner.caption(images, range(8)) == [(text, text) for text in cut]
    assert len(set(cut)) > 1


def test_a_captioner_keeps_the_contract(spec):
    check_captioner(spec)


def test_seeds_decide_captions_without_full_stops_on_every_device(captioner, images):
    one, two, again = captioner.caption([images[0]] * 3, [1, 2, 1])
    assert one == again != two
    assert len(set(one)) > 1
    captions = captioner.caption(images, range(8))
    assert all("." not in text and "_text>" not in text for group in captions for text in group)
    with no_float64():
        assert captioner.caption(images, range(8)) == captions


def stopping(spec, tmp_path, token_id):
    """The tiny captioner's spec, with weights that make one id by far the most probable everywhere."""
    state = load_file(spec.pretrained)
    # The last norm's shift goes through the projection to the logits, whatever the captions are.
    direction = state["text_decoder.text_projection"][:, token_id]
    state["text_decoder.ln_final.bias"] = 400 * direction / direction.norm() ** 2
    torch.save(state, tmp_path / "stopping.pt")
    return attrs.evolve(spec, pretrained=str(tmp_path / "stopping.pt"))


def steps_of(captioner):
    """A list that grows with every step of a captioner's decoder."""
    steps, step = [], captioner._model.step
    captioner._model.step = lambda state, ids: steps.append(ids) or step(state, ids)
    return steps


@pytest.mark.parametrize("token", ["</w>end", ".</w>", "...</w>"])
def test_the_end_and_full_stops_end_captions_but_not_before_the_fifth_id(spec, images, tmp_path, token):
    token_id = END if token == "</w>end" else open_clip.get_tokenizer("ViT-L-14").encoder[token]
    captioner = stopping(spec, tmp_path, token_id).build()
    steps = steps_of(captioner)
    texts = [text for group in captioner.caption(images[:4], range(4)) for text in group]
    assert len(steps) == 5
    assert all(text and "." not in text for text in texts)


def test_padding_is_never_drawn(spec, images, tmp_path):
    captioner = stopping(spec, tmp_path, 0).build()
    assert not any("!!" in text for group in captioner.caption(images[:2], [1, 2]) for text in group)


def test_the_length_is_limited(spec, images):
    for max_length in (6, 9):
        captioner = attrs.evolve(spec, max_length=max_length).build()
        steps = steps_of(captioner)
        captioner.caption(images[:2], [1, 2])
        assert len(steps) == max_length - 2
    with fails(ValueError, "77", "tiny_coca-", "76"):
        attrs.evolve(spec, max_length=77).build()


def test_text_of_ids(captioner):
    tokenizer = open_clip.get_tokenizer("ViT-L-14")

    ids = tokenizer.encode("a cat")
    for written, text in (
        (tokenizer.encode("a cat sits on a mat"), "a cat sits on a mat"),
        (tokenizer.encode("a cat. a dog."), "a cat"),
        (tokenizer.encode("a 🐱 — naïve"), "a 🐱 — naïve"),
        ([*ids, END, *tokenizer.encode("and more")], "a cat"),
        ([*ids, END, 0, 0, END], "a cat"),
    ):
        assert captioner._text(written) == text
    stops = {index for index, token in tokenizer.decoder.items() if index == END or "." in token}
    assert set(torch.nonzero(captioner._stops).flatten().tolist()) == stops
    assert len(stops) < 1000


def test_bfloat16_writes_captions_too(spec, images):
    captioner = attrs.evolve(spec, precision="bfloat16").build()
    captions = captioner.caption(images[:3], [1, 2, 3])
    assert captions == captioner.caption(images[:3], [1, 2, 3])
    assert all(text for group in captions for text in group)


def test_it_tells_its_weights(captioner, model):
    assert captioner.weights_sha256 == weights_sha256(model.state_dict())
    assert captioner.name == f"tiny_coca-{captioner.weights_sha256[:8]}"
    assert captioner.image.size == 32


def test_mistakes_are_named(tiny, spec, captioner, images, tmp_path):
    clip = tiny.teachers[0]
    with fails(ValueError, "tiny_vit-"):
        attrs.evolve(spec, model=clip.model, pretrained=clip.pretrained).build()
    with fails(ValueError, "2", "1"):
        captioner.caption(images[:2], [1])
    config = CONFIGS["tiny_coca"]
    other = {
        "classless": {**config, "text_cfg": {**config["text_cfg"], "embed_cls": False}},
        "quick": {**config, "quick_gelu": True},
    }
    for name, one in other.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(one))
        model = open_clip.CoCa(**{key: value for key, value in one.items() if key != "custom_text"})
        torch.manual_seed(0)
        state = {key: value if "ln_" in key else torch.randn_like(value) for key, value in model.state_dict().items()}
        torch.save(state, tmp_path / f"{name}.pt")
        with fails(ValueError, name):
            attrs.evolve(spec, model=str(tmp_path / f"{name}.json"), pretrained=str(tmp_path / f"{name}.pt")).build()
    for field, value in {"top_p": 0.0, "temperature": 0.0, "max_length": 5, "num_captions": 0}.items():
        with pytest.raises(ValueError, match=field):
            attrs.evolve(spec, **{field: value})
    assert captioner.caption([], []) == []


def test_images_are_made_square_as_the_model_says(spec, captioner, images, tmp_path):
    squashed = {"model_cfg": CONFIGS["tiny_coca"], "preprocess_cfg": {"resize_mode": "squash"}}
    (tmp_path / "squashed.json").write_text(json.dumps(squashed))
    other = attrs.evolve(spec, model=str(tmp_path / "squashed.json")).build()
    assert (captioner.image.fit, other.image.fit) == ("crop", "stretch")
    assert other.caption(images[:1], [1]) != captioner.caption(images[:1], [1])


def test_the_defaults_are_the_papers():
    spec = CocaCaptioner()
    assert open_clip.get_pretrained_cfg(spec.model, spec.pretrained)
    said = (spec.pretrained, spec.num_captions, spec.top_p, spec.max_length)
    assert said == ("mscoco_finetuned_laion2B-s13B-b90k", 5, 0.9, 30)


def test_a_package_adds_a_captioner(tmp_path, monkeypatch, images):
    install_plugin(
        tmp_path,
        monkeypatch,
        registry,
        "sizes",
        """
        import attrs
        from mobileclip.reinforce.captioners import CaptionerSpec

        class Sizes:
            name, weights_sha256, num_captions = "sizes", "0" * 64, 1

            def caption(self, images, seeds):
                return [(f"{image.width} by {image.height}",) for image in images]

        @attrs.frozen(kw_only=True)
        class Plugin(CaptionerSpec):
            def build(self, device="cpu"):
                return Sizes()
        """,
    )
    spec = from_json('{"kind": "sizes"}', CaptionerSpec)
    check_captioner(spec)
    assert spec.build().caption(images[:1], [0]) == [("40 by 32",)]
