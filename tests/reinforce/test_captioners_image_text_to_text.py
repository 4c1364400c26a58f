"""Vision-language models as captioners: captions that the image, its seed and the spec alone decide."""

import io
from concurrent.futures import ThreadPoolExecutor

import attrs
import pytest
import torch
from PIL import Image

from mobileclip.reinforce import ImageTextToTextCaptioner
from tests.contracts.captioners import check_captioner
from tests.errors import fails
from tests.lazily import lazily
from tests.no_float64 import no_float64
from tests.reinforce.conftest import picture
from tests.reinforce.tiny_transformers import write_blip, write_idefics, write_llava, write_qwen

transformers = lazily("transformers")

WRITERS = {"llava": write_llava, "qwen": write_qwen, "idefics": write_idefics, "blip": write_blip}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def spec(folder):
    return ImageTextToTextCaptioner(model=folder, num_captions=3, max_length=10, max_batch=4)


@pytest.fixture(scope="module")
def captioner(spec):
    return spec.build()


@pytest.fixture(scope="module")
def images():
    return [Image.open(io.BytesIO(picture(seed, width=40 + 40 * (seed % 2)))) for seed in range(6)]


@torch.inference_mode()
def test_a_tiny_nucleus_writes_what_generate_does(folder, spec, images):
    captioner = attrs.evolve(spec, top_p=1e-9, num_captions=1).build()
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    tokenizer = processor.tokenizer
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": spec.prompt}]}
    inputs = processor(
        images=images,
        text=[processor.apply_chat_template([turn], add_generation_prompt=True)] * len(images),
        return_tensors="pt",
    )
    out_of_the_question = sorted(
        {*tokenizer.all_special_ids, *range(len(tokenizer), model.config.text_config.vocab_size)}
    )
    theirs = model.generate(
        **inputs, do_sample=False, max_new_tokens=10, suppress_tokens=out_of_the_question, pad_token_id=0
    )[:, inputs["input_ids"].shape[1] :]
    texts = [" ".join(text.split()) for text in tokenizer.batch_decode(theirs)]
    assert len(set(texts)) > 3
    # The end is in question here, and nowhere there.
    for (ours,), text in zip(captioner.caption(images, range(6)), texts, strict=True):
        assert ours
        assert text.startswith(ours)


@pytest.mark.parametrize(
    "kind", ["qwen", "idefics", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("llava", "blip"))]
)
def test_a_captioner_keeps_the_contract(kind, tmp_path):
    check_captioner(ImageTextToTextCaptioner(model=WRITERS[kind](tmp_path), num_captions=2, max_length=5, max_batch=2))


def test_seeds_decide_however_many_captions_and_on_every_device(spec, captioner, images):
    first, second, third = captioner.caption([images[0]] * 3, [1, 2, 1])
    assert first == third != second
    assert len(set(first)) > 1
    captions = captioner.caption(images[:2], [1, 2])
    more = attrs.evolve(spec, num_captions=5).build().caption(images[:2], [1, 2])
    assert [texts[:3] for texts in more] == captions
    with no_float64():
        assert captioner.caption(images[:2], [1, 2]) == captions


def test_a_caption_of_one_id_says_something(spec, images):
    captions = attrs.evolve(spec, max_length=1).build().caption(images, range(len(images)))
    assert all(any(map(str.isalnum, text)) for texts in captions for text in texts)


def test_threads_share_a_captioner(captioner, images):
    alone = [captioner.caption([image], [7])[0] for image in images]
    with ThreadPoolExecutor(4) as pool:
        assert [one for (one,) in pool.map(lambda image: captioner.caption([image], [7]), images)] == alone


def test_the_prompt_counts_and_is_kept(spec, captioner, images, tmp_path):
    other = attrs.evolve(spec, prompt="What is it?")
    assert other.build().caption(images[:2], [1, 2]) != captioner.caption(images[:2], [1, 2])
    plain = write_llava(tmp_path, template=False)
    text = "user: <image>What is it?assistant:"
    whole = attrs.evolve(other, model=plain, prompt=text).build()
    assert whole.caption(images[:2], [1, 2]) == other.build().caption(images[:2], [1, 2])
    with pytest.raises(ValueError, match="prompt"):
        attrs.evolve(spec, prompt=" \n")


def test_a_caption_is_one_line_without_what_is_no_text(captioner):
    tokenizer, vocabulary = captioner._processor.tokenizer, captioner._vocabulary
    ids = tokenizer("a cat. a dog", add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id, *ids]
    assert vocabulary.text([*ids, *end], first_sentence=False) == "a cat. a dog"
    assert vocabulary.text([*ids, *end], first_sentence=True) == "a cat"
    dot = tokenizer(". ! a cat.", add_special_tokens=False)["input_ids"]
    assert vocabulary.text(dot, first_sentence=True) == "! a cat"
    assert not vocabulary.is_visible[tokenizer.convert_tokens_to_ids(["▁", "!", "<eos>", "<image>", "<pad>"])].any()
    assert vocabulary.is_visible[tokenizer.convert_tokens_to_ids(["a", "▁cat", "あ"])].all()


def test_mistakes(spec, captioner, images, tmp_path):
    with fails(ValueError, "2", "1"):
        captioner.caption(images[:2], [1])
    for model in (str(tmp_path / "none"), tmp_path):
        with fails(ValueError):
            attrs.evolve(spec, model=model).build()
    transformers.AutoConfig.for_model("clip").save_pretrained(tmp_path)
    with fails(ValueError, "Unrecognized configuration"):
        attrs.evolve(spec, model=tmp_path).build()
