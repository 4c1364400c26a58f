"""ARO in its published layout, against the public rules in their naive form and against counting by hand."""

import io
import re
from collections import Counter

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from mobileclip.data import ImageTransform, Tokenizer
from mobileclip.evaluation import Features
from mobileclip.evaluation.tasks.choice_files import normalize_caption
from mobileclip.evaluation.tasks.choices import PERTURBATIONS, score_groups, score_orders
from tests.data.made_samples import write_layout
from tests.encoders.small import SMALL_MCT
from tests.errors import fails
from tests.evaluation.models import COLOURS, ColourModel, ColourTower, NameTower, session_of
from tests.evaluation.tasks.choices.data import (
    CAPTIONS,
    LEFT,
    RELATIONS,
    evaluated,
    halves,
    opened,
    order_picture,
    orders_of,
    other_orders,
    pair,
    write,
    write_genome,
    write_order,
)
from tests.evaluation.tasks.test_evaluate import encoded
from tests.stores import web_server

NUM_CAPTIONS = 9
RELATION, COCO = "aro/vg_relation", "aro/coco_order"


@pytest.fixture(scope="module")
def clip():
    """A small model of real towers, with its transform and tokenizer."""
    text = attrs.evolve(SMALL_MCT.text, input=attrs.evolve(SMALL_MCT.text.input, vocab_size=49408, context_length=40))
    spec = attrs.evolve(SMALL_MCT, text=text)
    torch.manual_seed(0)
    return spec.build().eval(), ImageTransform(spec.image.input), Tokenizer(spec.text.input)


def session_of_clip(clip, **options):
    return session_of(clip[0], **options)


@pytest.fixture
def genome(tmp_path):
    write_genome(tmp_path, RELATIONS, a=halves("red", "blue"), b=halves("green", "yellow"))
    return tmp_path


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_relations_by_hand(genome, batch_size):
    evaluation = evaluated(RELATION, genome, session_of(batch_size=batch_size, num_threads=2))
    result, report = evaluation, evaluation.report
    assert (result.key, result.dataset) == ("aro/vg_relation", "VG-Relation")
    assert (report.num_read, report.num_skipped) == (result.num_images, result.num_skipped) == (7, 0)
    assert result.metrics == pytest.approx(
        {
            "main_metric": (2 / 3 + 1 / 3) / 2,
            "macro_accuracy": (2 / 3 + 1 / 3) / 2,
            "accuracy": 3 / 7,
            "accuracy/on": 2 / 3,
            "accuracy/under": 1 / 3,
        }
    )
    # Two pictures of three cases each that count.
    assert evaluation.outcomes.values.tolist() == pytest.approx([2 / 3, 1 / 3])
    assert evaluation.outcomes.num_effective == pytest.approx(2)


def test_attributes_count_from_25_cases_on(tmp_path):
    def cases(count, right, attributes):
        texts = ("red", "blue"), ("blue", "red")
        return [pair("a.png", LEFT, *texts[number >= right], attributes=attributes) for number in range(count)]

    entries = cases(25, 10, ["old", "red"]) + cases(24, 24, ["red", "old"]) + cases(30, 15, ["wet", "dry"])
    write_genome(tmp_path, entries, "attribution", a=halves("red", "blue"))
    assert evaluated("aro/vg_attribution", tmp_path).metrics == pytest.approx(
        {
            "main_metric": (10 / 25 + 15 / 30) / 2,
            "macro_accuracy": (10 / 25 + 15 / 30) / 2,
            "accuracy": (10 + 24 + 15) / 79,
            "accuracy/old_red": 10 / 25,
            "accuracy/wet_dry": 15 / 30,
        }
    )


@pytest.mark.parametrize("box", [(5, 2, 30, 20), (4.6, 2.4, 30, 19.6)])
def test_the_cut_is_the_published_one(tmp_path, clip, box):
    """A box that leaves the picture is filled with black, as `Image.crop` does, and parts of pixels are rounded."""
    picture = encoded((0.5, 0.3, 0.8), size=(24, 18), noise=90)
    write_genome(tmp_path, [pair("a.png", box, "a cat", "a dog", relation_name="on")], a=picture)

    session = session_of_clip(clip, num_threads=1)
    found = opened(RELATION, tmp_path).features(session).image
    expected = np.zeros((20, 30, 3), np.uint8)
    expected[:16, :19] = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))[2:, 5:]
    torch.testing.assert_close(found, session.clip.encode_image([Image.fromarray(expected)], normalize=False))


def test_what_cannot_be_used_is_counted_case_by_case(genome, caplog):
    entries = [
        *RELATIONS,
        pair("missing.png", LEFT, "red", "blue", relation_name="on"),
        pair("a.png", (20, 0, 5, 5), "red", "blue", relation_name="on"),
    ]
    write_genome(genome, entries)
    evaluation = evaluated(RELATION, genome)
    assert evaluation.metrics["accuracy/on"] == pytest.approx(2 / 3)
    assert evaluation.num_skipped == evaluation.report.num_skipped == 2
    assert evaluation.report.keys("image_missing") == ("missing.png, entry 7",)
    assert evaluation.report.keys("box_outside") == ("a.png, entry 8",)
    assert f"{genome}/aro/images/missing.png is missing" in caplog.text


def test_a_mean_of_fewer_groups_is_refused(genome):
    (genome / "aro" / "images" / "b.png").unlink()
    with fails(ValueError, "2", "1", "under"):
        evaluated(RELATION, genome)
    (genome / "aro" / "images" / "a.png").unlink()
    with fails(ValueError, "VG-Relation", "0 samples read, 7 skipped"):
        evaluated(RELATION, genome)


def test_every_part_and_every_text_is_encoded_once(genome):
    model, asked = ColourModel(), Counter()
    for tower in (model.image_encoder, model.text_encoder):
        tower.register_forward_pre_hook(lambda tower, inputs: asked.update({type(tower): len(inputs[0])}))
    evaluated(RELATION, genome, session_of(model))
    assert asked == {ColourTower: 4, NameTower: 4}  # two halves of two pictures, four colours


def test_from_a_web_server(genome):
    local = evaluated(RELATION, genome)
    with web_server() as web:
        for path in genome.rglob("*.*"):
            web.files[f"/{path.relative_to(genome)}"] = path.read_bytes()
        assert evaluated(RELATION, web.url) == local


@pytest.mark.parametrize("part", ["coco", "flickr30k"])
def test_orders_against_the_public_rule(tmp_path, clip, part):
    """Caption by caption: five texts to a picture, and the first of the best has to be the true one."""
    model, transform, tokenizer = clip
    write_order(tmp_path, part)
    evaluation = evaluated(f"aro/{part}_order", tmp_path, session_of_clip(clip, batch_size=2))
    right, beaten, distinct = [], [], []
    for name, texts in CAPTIONS.items():
        picture = Image.open(io.BytesIO(order_picture(name))).convert("RGB")
        for caption in texts:
            options = [normalize_caption(text) for text in (caption, *other_orders(caption))]
            tokens = tokenizer(options)
            with torch.inference_mode():
                image = model.encode_image(transform(picture)[None], normalize=True)
                scores = (model.encode_text(tokens, normalize=True) @ image[0]).tolist()
            same = (tokens == tokens[0]).all(dim=1).tolist()
            scores = [scores[0] if one else score for one, score in zip(same, scores, strict=True)]
            # Other orders of other operations round otherwise: what decides has to be larger.
            assert all(one or abs(scores[0] - score) > 1e-5 for one, score in zip(same, scores, strict=True))
            right.append(scores.index(max(scores)) == 0)
            distinct.append(len(set(map(tuple, tokens.tolist()))))
            beaten.append([scores[0] >= score for score in scores[1:]])
    metrics = evaluation.metrics
    assert evaluation.key == f"aro/{part}_order"
    assert "by hand" in evaluation.dataset
    assert metrics["main_metric"] == metrics["precision@1"] == pytest.approx(np.mean(right))
    assert [metrics[f"accuracy/{name}"] for name in PERTURBATIONS] == pytest.approx(np.mean(beaten, axis=0).tolist())
    assert metrics["chance"] == pytest.approx(np.mean([1 / number for number in distinct]))
    assert 1 < sum(right) < NUM_CAPTIONS  # both happen, not for "Snow" alone
    assert evaluation.report.num_read == evaluation.num_images == NUM_CAPTIONS


def write_suite_captions(tmp_path):
    """Shards of the suite's own data set, beside a folder `aro` that has orders and no captions."""
    samples = {name: {"png": order_picture(name), "txt": "\n".join(texts).encode()} for name, texts in CAPTIONS.items()}
    samples["bad"] = {"png": b"no image", "txt": b"a cat\n...\na dog"}
    write_layout(tmp_path / "wds_mscoco_captions_test", samples, kind="retrieval")
    captions = [*(one for texts in CAPTIONS.values() for one in texts), "a cat", "a dog"]
    write(tmp_path / "aro", {"coco_order.jsonl": orders_of(captions)})


def test_orders_of_the_suite_s_own_data_set(tmp_path, clip):
    """Shards with the same pictures and captions give the same figures, and no second copy is needed."""
    write_suite_captions(tmp_path)
    task = opened(COCO, tmp_path)
    assert (task.key, task.name[:10], task.num_pictures) == ("aro/coco_order", "COCO-Order", 4)
    write_order(tmp_path / "own")
    runs = [task.evaluate(session_of_clip(clip)), evaluated(COCO, tmp_path / "own", session_of_clip(clip))]
    assert runs[0].metrics == pytest.approx(runs[1].metrics)
    assert runs[0].report.num_read == runs[1].report.num_read == NUM_CAPTIONS
    assert runs[0].report.keys("no_caption") == ("bad, caption 1",)
    assert runs[0].report.keys("image_not_an_image") == ("bad, caption 0", "bad, caption 2")


def test_captions_and_orders_that_are_not_there(tmp_path):
    write(tmp_path / "aro", {"coco_order.jsonl": orders_of(["a"])})
    with fails(ValueError, "wds_mscoco_captions_test"):
        opened(COCO, tmp_path)
    colour = {"a": {"png": encoded(COLOURS["red"]), "cls": b"0"}}
    write_layout(tmp_path / "wds_mscoco_captions_test", colour, classnames=["red"], templates=["{c}"])
    with fails(ValueError, "captions"):
        opened(COCO, tmp_path)
    (write_order(tmp_path) / "coco_order.jsonl").unlink()
    with fails(ValueError, "coco_order.jsonl"):
        opened(COCO, tmp_path)


def test_captions_without_a_word_are_left_out(tmp_path):
    entries = [{"image": "val2014/red.png", "caption": [" ", "...", "a kite"]}]
    write(write_order(tmp_path), {"coco_karpathy_test.json": entries})
    evaluation = evaluated(COCO, tmp_path)
    assert evaluation.report.keys("no_caption") == tuple(f"val2014/red.png, caption {number}" for number in (0, 1))
    assert (evaluation.num_images, evaluation.num_skipped) == (1, 2)


def test_other_orders_are_other_questions(tmp_path):
    """What was encoded of others is not taken for these."""
    path = write_order(tmp_path) / "coco_order.jsonl"
    content = opened(COCO, tmp_path).content()
    path.write_text(path.read_text().replace("Snow", "Rain"))
    with fails(ValueError, "'Snow'"):
        evaluated(COCO, tmp_path)
    for old, new in (("Rain", "Snow"), ('"orders": ["kite a"', '"orders": ["a kite"')):
        path.write_text(path.read_text().replace(old, new))
    assert opened(COCO, tmp_path).content() != content


ORDERS, CAPTIONS_FILE = "coco_order.jsonl", "coco_karpathy_test.json"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (ORDERS, "", ""),
        (ORDERS, '{"seed": 0}', "line 1: tagger"),
        (ORDERS, '{"tagger": "by hand"}\n{"caption": "a"}', "line 2: orders"),
        (ORDERS, '{"tagger": "by hand"}\n{"caption": "a", "orders": ["a", "b"]}', "line 2: orders"),
        (ORDERS, '{"tagger": "by hand"}\n{"caption": " ", "orders": ["a", "b", "c", "d"]}', "line 2: caption"),
        (ORDERS, '{"tagger": "by hand"}\n[', "line 2"),
        (CAPTIONS_FILE, '[{"image": "val2014/a.png"}]', "entry 0: caption"),
        (CAPTIONS_FILE, '[{"image": "val2014/a.png", "caption": "a"}]', "entry 0: caption"),
        (CAPTIONS_FILE, '[{"image": "there/a.png", "caption": ["a"]}]', "there"),
    ],
)
def test_malformed_files(tmp_path, name, content, message):
    write(write_order(tmp_path), {name: content})
    with fails(ValueError, message):
        opened(COCO, tmp_path)


@given(st.text(alphabet="aB \n\t.!\"()*#:;~,'-é", max_size=80))
def test_shown_captions_against_the_naive_form(caption):
    text = "".join(" " if character in '.!"()*#:;~' else character.lower() for character in caption)
    while found := re.search(r"\s\s+", text):
        text = text[: found.start()] + " " + text[found.end() :]
    while text.endswith("\n"):
        text = text[:-1]
    assert normalize_caption(caption) == " ".join(text.strip(" ").split(" ")[:30])


def features_of(scores, texts, **header):
    """Features of one picture and of texts that are as alike to it as the scores say."""
    values = torch.tensor(scores).flatten()
    text = torch.stack([values, (1 - values**2).sqrt()], dim=1)
    # Texts of one number are one text, that of the first.
    rows = [[line.index(number) + len(line) * place for number in line] for place, line in enumerate(texts)]
    header = {"views": [[0]] * len(rows), "texts": rows, "pictures": list("abb")[: len(rows)], **header}
    return Features(tensors={"image": torch.tensor([[1.0, 0.0]]), "text": text}, header=header)


def test_equal_scores():
    """By hand: the true caption first, and texts of one number are one text to the model."""
    scores = [[0.5, 0.5, 0.5, 0.1, 0.1], [0.5, 0.6, 0.1, 0.1, 0.1], [0.5, 0.5, 0.5, 0.5, 0.5]]
    metrics, outcomes = score_orders(features_of(scores, [[0, 0, 1, 2, 2], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]))
    assert outcomes.values.tolist() == pytest.approx([1 / 3, 2 / 15])
    assert metrics["precision@1"] == pytest.approx((1 / 2 + 0 + 1 / 5) / 3)
    assert metrics["chance"] == pytest.approx((1 / 3 + 1 / 5 + 1 / 5) / 3)
    assert [metrics[f"accuracy/{name}"] for name in PERTURBATIONS] == pytest.approx(
        [(1 + 0 + 0.5) / 3, (0.5 + 1 + 0.5) / 3, 2.5 / 3, 2.5 / 3]
    )
    pairs = features_of([[0.5, 0.5], [0.5, 0.5]], [[0, 1], [0, 0]], groups=["on", "under"])
    assert score_groups(pairs, ["on", "under"])[0]["macro_accuracy"] == pytest.approx((0.5 + 0) / 2)
