"""ARO in its published layout, against the public rules in their naive form and against counting by hand."""

import io
import re
import shutil
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
from tests.evaluation.tasks.choices import data as made
from tests.evaluation.tasks.choices.data import CAPTIONS, LEFT, RELATIONS, evaluated, opened, write, write_genome
from tests.evaluation.tasks.test_evaluate import encoded
from tests.stores import web_server

ALL_CAPTIONS = [one for texts in CAPTIONS.values() for one in texts]
RELATION, COCO = "aro/vg_relation", "aro/coco_order"
ORDERS, CAPTIONS_FILE = "coco_order.jsonl", "coco_karpathy_test.json"


@pytest.fixture(scope="module")
def model():
    """A small model of real towers."""
    text = attrs.evolve(SMALL_MCT.text, input=attrs.evolve(SMALL_MCT.text.input, vocab_size=49408, context_length=40))
    torch.manual_seed(0)
    return attrs.evolve(SMALL_MCT, text=text).build().eval()


@pytest.fixture
def genome(tmp_path):
    write_genome(tmp_path, RELATIONS, a=made.halves("red", "blue"), b=made.halves("green", "yellow"))
    return tmp_path


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_relations_by_hand(genome, batch_size):
    found = evaluated(RELATION, genome, session_of(batch_size=batch_size, num_threads=2))
    assert (found.key, found.dataset, found.num_images, found.num_skipped) == (RELATION, "VG-Relation", 7, 0)
    assert (found.report.num_read, found.report.num_skipped) == (7, 0)
    expected = {"accuracy": 3 / 7, "accuracy/on": 2 / 3, "accuracy/under": 1 / 3}
    assert found.metrics == pytest.approx(expected | dict.fromkeys(("main_metric", "macro_accuracy"), 1 / 2))
    # Two pictures of three cases each that count.
    assert found.outcomes.values.tolist() == pytest.approx([2 / 3, 1 / 3])
    assert found.outcomes.num_effective == pytest.approx(2)
    with web_server() as web:
        web.files |= {f"/{path.relative_to(genome)}": path.read_bytes() for path in genome.rglob("*.*")}
        assert evaluated(RELATION, web.url) == evaluated(RELATION, genome)
    images = genome / "aro" / "images"
    images.with_suffix(".zip").write_bytes(made.zipped({file.name: file.read_bytes() for file in images.iterdir()}))
    shutil.rmtree(images)
    assert evaluated(RELATION, genome).metrics == found.metrics


def test_attributes_count_from_25_cases_on(tmp_path):
    entries = []
    for count, right, attributes in ((25, 10, ["old", "red"]), (24, 24, ["red", "old"]), (30, 15, ["wet", "dry"])):
        texts = [("red", "blue")] * right + [("blue", "red")] * (count - right)
        entries += [made.pair("a.png", LEFT, *one, attributes=attributes) for one in texts]
    write_genome(tmp_path, entries, "attribution", a=made.halves("red", "blue"))
    mean = (10 / 25 + 15 / 30) / 2
    counted = {"accuracy": (10 + 24 + 15) / 79, "accuracy/old_red": 10 / 25, "accuracy/wet_dry": 15 / 30}
    found = evaluated("aro/vg_attribution", tmp_path).metrics
    assert found == pytest.approx({"main_metric": mean, "macro_accuracy": mean, **counted})


@pytest.mark.parametrize("box", [(5, 2, 30, 20), (4.6, 2.4, 30, 19.6)])
def test_the_cut_is_the_published_one(tmp_path, model, box):
    """A box that leaves the picture is filled with black, as `Image.crop` does, and parts of pixels are rounded."""
    picture = encoded((0.5, 0.3, 0.8), size=(24, 18), noise=90)
    write_genome(tmp_path, [made.pair("a.png", box, "a cat", "a dog", relation_name="on")], a=picture)
    session = session_of(model, num_threads=1)
    expected = np.zeros((20, 30, 3), np.uint8)
    expected[:16, :19] = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))[2:, 5:]
    found = opened(RELATION, tmp_path).features(session).image
    torch.testing.assert_close(found, session.clip.encode_image([Image.fromarray(expected)], normalize=False))


def test_what_cannot_be_used_is_counted_case_by_case(genome, caplog):
    lost = ("missing.png", LEFT), ("a.png", (20, 0, 5, 5))
    write_genome(genome, [*RELATIONS, *(made.pair(*one, "red", "blue", relation_name="on") for one in lost)])
    found = evaluated(RELATION, genome)
    assert found.metrics["accuracy/on"] == pytest.approx(2 / 3)
    assert found.num_skipped == found.report.num_skipped == 2
    assert found.report.keys("image_missing") == ("missing.png, entry 7",)
    assert found.report.keys("box_outside") == ("a.png, entry 8",)
    assert f"{genome}/aro/images/missing.png is missing" in caplog.text


def test_a_mean_of_fewer_groups_is_refused(genome):
    for name, words in {"b": ["2", "1", "under"], "a": ["VG-Relation", "0 samples read, 7 skipped"]}.items():
        (genome / "aro" / "images" / f"{name}.png").unlink()
        with fails(ValueError, *words):
            evaluated(RELATION, genome)


def test_every_part_and_every_text_is_encoded_once(genome):
    model, asked = ColourModel(), Counter()
    for tower in (model.image_encoder, model.text_encoder):
        tower.register_forward_pre_hook(lambda tower, inputs: asked.update({type(tower): len(inputs[0])}))
    evaluated(RELATION, genome, session_of(model))
    assert asked == {ColourTower: 4, NameTower: 4}  # two halves of two pictures, four colours


@pytest.mark.parametrize("part", ["coco", "flickr30k"])
def test_orders_against_the_public_rule(tmp_path, model, part):
    """Caption by caption: five texts to a picture, and the first of the best has to be the true one."""
    made.write_order(tmp_path, part)
    found = evaluated(f"aro/{part}_order", tmp_path, session_of(model, batch_size=2))
    transform, tokenizer = ImageTransform(model.spec.image.input), Tokenizer(model.spec.text.input)
    right, beaten, chances = [], [], []
    for name, texts in CAPTIONS.items():
        picture = Image.open(io.BytesIO(made.order_picture(name))).convert("RGB")
        for caption in texts:
            tokens = tokenizer([normalize_caption(text) for text in (caption, *made.other_orders(caption))])
            with torch.no_grad():
                image = model.encode_image(transform(picture)[None], normalize=True)
                scores = model.encode_text(tokens, normalize=True) @ image[0]
            same = (tokens == tokens[0]).all(dim=1)
            scores[same] = scores[0]
            # Other orders of other operations round otherwise: what decides has to be larger.
            assert (same | ((scores - scores[0]).abs() > 1e-5)).all()
            right.append(bool(scores[0] == scores.max()))
            chances.append(1 / len(tokens.unique(dim=0)))
            beaten.append((scores[0] >= scores[1:]).tolist())
    assert (found.key, "by hand" in found.dataset) == (f"aro/{part}_order", True)
    assert found.main_metric == found.metrics["precision@1"] == pytest.approx(np.mean(right))
    accuracies = [found.metrics[f"accuracy/{name}"] for name in PERTURBATIONS]
    assert accuracies == pytest.approx(np.mean(beaten, axis=0).tolist())
    assert found.metrics["chance"] == pytest.approx(np.mean(chances))
    assert 1 < sum(right) < len(ALL_CAPTIONS)  # both happen, not for "Snow" alone
    assert found.report.num_read == found.num_images == len(ALL_CAPTIONS)


def test_orders_of_the_suite_s_own_data_set(tmp_path, model):
    """Shards with the same pictures and captions give the same figures, and no second copy is needed."""
    shown = {name: {"png": made.order_picture(name), "txt": "\n".join(CAPTIONS[name]).encode()} for name in CAPTIONS}
    shown["bad"] = {"png": b"no image", "txt": b"a cat\n...\na dog"}
    write_layout(tmp_path / "wds_mscoco_captions_test", shown, kind="retrieval")
    write(tmp_path / "aro", {ORDERS: made.orders_of([*ALL_CAPTIONS, "a cat", "a dog"])})
    task = opened(COCO, tmp_path)
    assert (task.key, task.name[:10], task.num_images) == (COCO, "COCO-Order", 4)
    made.write_order(tmp_path / "own")
    found, own = task.evaluate(session_of(model)), evaluated(COCO, tmp_path / "own", session_of(model))
    assert found.metrics == pytest.approx(own.metrics)
    assert found.report.num_read == own.report.num_read == len(ALL_CAPTIONS)
    assert found.report.keys("no_caption") == ("bad, caption 1",)
    assert found.report.keys("image_not_an_image") == ("bad, caption 0", "bad, caption 2")


def test_captions_and_orders_that_are_not_there(tmp_path):
    write(tmp_path / "aro", {ORDERS: made.orders_of(["a"])})
    with fails(ValueError, "wds_mscoco_captions_test"):
        opened(COCO, tmp_path)
    colour = {"a": {"png": encoded(COLOURS["red"]), "cls": b"0"}}
    write_layout(tmp_path / "wds_mscoco_captions_test", colour, classnames=["red"], templates=["{c}"])
    with fails(ValueError, "captions"):
        opened(COCO, tmp_path)
    (made.write_order(tmp_path) / ORDERS).unlink()
    with fails(ValueError, ORDERS):
        opened(COCO, tmp_path)


def test_captions_without_a_word_are_left_out(tmp_path):
    captions = [{"image": "val2014/red.png", "caption": [" ", "...", "a kite"]}]
    write(made.write_order(tmp_path), {CAPTIONS_FILE: captions})
    found = evaluated(COCO, tmp_path)
    assert found.report.keys("no_caption") == ("val2014/red.png, caption 0", "val2014/red.png, caption 1")
    assert (found.num_images, found.num_skipped) == (1, 2)


def test_other_orders_are_other_questions(tmp_path):
    """What was encoded of others is not taken for these."""
    path = made.write_order(tmp_path) / ORDERS
    content, whole = opened(COCO, tmp_path).content(), path.read_text()
    path.write_text(whole.replace("Snow", "Rain"))
    with fails(ValueError, "'Snow'"):
        evaluated(COCO, tmp_path)
    path.write_text(whole.replace('"orders": ["kite a"', '"orders": ["a kite"'))
    assert opened(COCO, tmp_path).content() != content


TAGGED = '{"tagger": "by hand"}\n'


MALFORMED = [
    (ORDERS, "", ""),
    (ORDERS, '{"seed": 0}', "line 1: tagger"),
    (ORDERS, TAGGED + '{"caption": "a"}', "line 2: orders"),
    (ORDERS, TAGGED + '{"caption": "a", "orders": ["a", "b"]}', "line 2: orders"),
    (ORDERS, TAGGED + '{"caption": " ", "orders": ["a", "b", "c", "d"]}', "line 2: caption"),
    (ORDERS, TAGGED + "[", "line 2"),
    (CAPTIONS_FILE, '[{"image": "val2014/a.png"}]', "entry 0: caption"),
    (CAPTIONS_FILE, '[{"image": "val2014/a.png", "caption": "a"}]', "entry 0: caption"),
    (CAPTIONS_FILE, '[{"image": "there/a.png", "caption": ["a"]}]', "there"),
]


@pytest.mark.parametrize(("name", "content", "message"), MALFORMED)
def test_malformed_files(tmp_path, name, content, message):
    write(made.write_order(tmp_path), {name: content})
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
    header = {"views": [[0]] * len(rows), "texts": rows, "images": list("abb")[: len(rows)], **header}
    return Features(tensors={"image": torch.tensor([[1.0, 0.0]]), "text": text}, header=header)


def test_equal_scores():
    """By hand: the true caption first, and texts of one number are one text to the model."""
    scores = [[0.5, 0.5, 0.5, 0.1, 0.1], [0.5, 0.6, 0.1, 0.1, 0.1], [0.5] * 5]
    metrics, outcomes = score_orders(features_of(scores, [[0, 0, 1, 2, 2], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]))
    assert outcomes.values.tolist() == pytest.approx([1 / 3, 2 / 15])
    assert metrics["precision@1"] == pytest.approx((1 / 2 + 0 + 1 / 5) / 3)
    assert metrics["chance"] == pytest.approx((1 / 3 + 1 / 5 + 1 / 5) / 3)
    accuracies = [metrics[f"accuracy/{name}"] for name in PERTURBATIONS]
    assert accuracies == pytest.approx([(1 + 0 + 0.5) / 3, (0.5 + 1 + 0.5) / 3, 2.5 / 3, 2.5 / 3])
    pairs = features_of([[0.5, 0.5], [0.5, 0.5]], [[0, 1], [0, 0]], groups=["on", "under"])
    assert score_groups(pairs, ["on", "under"])[0]["macro_accuracy"] == pytest.approx((0.5 + 0) / 2)
