"""The choices of published files: by hand, one by one, and with scikit-learn's Jaccard index."""

import io
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from mobileclip.evaluation import published_results
from mobileclip.evaluation.tasks.choices import matches
from tests.contracts.tasks import check_task
from tests.errors import fails
from tests.evaluation.models import COLOURS, ColourModel, NameTower, session_of, tokenize
from tests.evaluation.tasks.choices import data as made
from tests.evaluation.tasks.choices.data import (
    INSTANCES,
    NAMES,
    RELATIONS,
    SHADES,
    SHAREGPT4V,
    evaluated,
    opened,
    write,
)
from tests.evaluation.tasks.test_evaluate import encoded, to_tensor
from tests.lazily import lazily
from tests.stores import web_server

reference = lazily("sklearn.metrics")
RELATION, ATTRIBUTES, WINOGAVIL = "aro/vg_relation", "aro/vg_attribution", "misc/winogavil"
CREPE, GROUND, LANGUAGES = "comp/sugarcrepe_swap_att", "comp/winoground", "multilingual/crossmodal3600"
URBAN, GPT = "longclip/urban1k", "longclip/sharegpt4v-1k"
FILES = {
    RELATION: "aro/visual_genome_relation.json",
    ATTRIBUTES: "aro/visual_genome_attribution.json",
    WINOGAVIL: "winogavil/winogavil_dataset.csv",
    CREPE: "sugarcrepe/swap_att.json",
    GROUND: "winoground/examples.jsonl",
    GPT: f"sharegpt4v/{SHAREGPT4V}",
    LANGUAGES: "xm3600/captions.jsonl",
}


@pytest.fixture
def data(tmp_path):
    return made.write_all(tmp_path)


BY_HAND = [
    (CREPE, {"accuracy": 3 / 5}, 3),  # questions about one picture are not independent
    (GROUND, dict.fromkeys(("text_score", "image_score", "group_score"), 1 / 3), 3),
    (URBAN, dict.fromkeys(("text_retrieval_recall@1", "image_retrieval_recall@1", "mean_recall@1"), 1 / 2), 4),
    (GPT, {"mean_recall@1": 1.0}, 4),
]


@pytest.mark.parametrize(("key", "metrics", "num_outcomes"), BY_HAND)
def test_metrics_by_hand(key, metrics, num_outcomes, data):
    found = evaluated(key, data)
    expected = metrics | {"main_metric": list(metrics.values())[-1]}
    assert {name: found.metrics[name] for name in expected} == pytest.approx(expected)
    assert (found.num_skipped, found.report.num_skipped, len(found.outcomes.values)) == (0, 0, num_outcomes)
    assert float(found.outcomes.values.mean()) == pytest.approx(found.main_metric)
    assert published_results("mobileclip2_b")[URBAN].metrics.keys() <= found.metrics.keys() or key != URBAN


LOST = [
    (RELATION, "aro/images/a.png", "image_truncated", tuple(f"a.png, entry {number}" for number in range(3))),
    (CREPE, "sugarcrepe/val2017/2.jpg", "image_missing", ("1", "2")),
    (GROUND, "winoground/images.zip ex_1_img_0", "image_missing", ("1", "2")),
    (WINOGAVIL, "winogavil/winogavil_images.zip sea", "image_missing", ("103", "104", "105", "106")),
    (URBAN, "urban1k/image/3.jpg", "image_truncated", ("3",)),
    (GPT, "sharegpt4v/sam/images/sa_2.jpg", "image_missing", ("sam/images/sa_2.jpg",)),
]


@pytest.mark.parametrize(("key", "picture", "reason", "lost"), LOST)
def test_a_lost_picture_costs_its_cases(key, picture, reason, lost, data):
    """Each is counted once, by its key, and the contract of tasks is kept."""
    path, _, member = picture.partition(" ")
    if member:
        with zipfile.ZipFile(data / path) as archive:
            kept = {name: archive.read(name) for name in archive.namelist() if member not in name}
        (data / path).write_bytes(made.zipped(kept))
    elif reason == "image_missing":
        (data / path).unlink()
    else:
        (data / path).write_bytes((data / path).read_bytes()[:-30])
    if key == RELATION:  # of which every group that counts has cases of the other picture
        write(data, {FILES[RELATION]: [case | {"relation_name": "on"} for case in RELATIONS]})
    whole = evaluated(key, data)
    assert whole.report.keys(reason) == lost
    assert whole.report.num_skipped == whole.num_skipped == len(lost)
    assert whole.report.num_read == whole.num_images > 0
    check_task(key, data, session_of(batch_size=4))


@given(st.integers(0, 10_000))
def test_matches_one_by_one(seed):
    pictures, captions = torch.randn(2, 5, 2, 3, generator=torch.Generator().manual_seed(seed))
    by_text, by_image = matches(pictures, captions)
    for number in range(5):
        (a, b), (c, d) = torch.cosine_similarity(pictures[number, :, None], captions[number], dim=-1).tolist()
        assert (bool(by_text[number]), bool(by_image[number])) == (a > b and d > c, a > c and d > b)


def scores_by_hand():
    """The number of candidates and the Jaccard index of every instance: images and cues go in one by one."""
    model, scores = ColourModel().eval(), []
    with torch.inference_mode():
        for cue, candidates, associations in INSTANCES:
            text = model.encode_text(tokenize([cue.lower()]), normalize=True)
            pixels = [to_tensor(Image.open(io.BytesIO(encoded(SHADES[name]))).convert("RGB")) for name in candidates]
            similarity = [float(text @ model.encode_image(one[None], normalize=True).T) for one in pixels]
            true = np.isin(candidates, associations)
            chosen = np.isin(np.arange(len(candidates)), np.argsort(similarity)[-true.sum() :])
            scores.append((len(candidates), reference.jaccard_score(true, chosen)))
    return scores


def test_prompts_of_cues_are_those_of_the_public_evaluation(data):
    cues, texts = ("werewolf", "Apple", "USA", "éclair"), set()
    write(data, {FILES[WINOGAVIL]: made.instances_table([(cue, NAMES, NAMES[:2]) for cue in cues])})
    remember = NameTower(lambda several: texts.update(several) or tokenize(several))
    evaluated(WINOGAVIL, data, session_of(ColourModel(text=remember)))
    assert texts == {"A werewolf", "An apple", "An usa", "A éclair"}


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_associations_by_hand(data, batch_size):
    found, scores = evaluated(WINOGAVIL, data, session_of(batch_size=batch_size)), scores_by_hand()
    assert len({score for _, score in scores}) > 2
    expected = {"avg_jaccard_score": np.mean([score for _, score in scores])}
    groups = {"5": (5,), "6": (6,), "10": (10,), "12": (12,), "5-6": (5, 6), "10-12": (10, 11, 12)}
    for name, sizes in groups.items():
        own = [score for size, score in scores if size in sizes]
        expected |= {f"jaccard_score_{name}": np.mean(own), f"count_{name}": len(own)}
    assert dict(found.metrics) == pytest.approx(expected | {"main_metric": expected["jaccard_score_10-12"]})
    assert found.main_metric != found.metrics["avg_jaccard_score"]
    assert (found.key, found.dataset, found.num_images, found.report.num_read) == (WINOGAVIL, "WinoGAViL", 7, 7)
    assert found.outcomes.values.tolist() == pytest.approx([score for size, score in scores if size >= 10])
    assert found.outcomes.interval.low < found.main_metric < found.outcomes.interval.high

    # Between six and ten candidates, which the published data do not have, an instance counts in the mean alone.
    write(data, {FILES[WINOGAVIL]: made.instances_table([*INSTANCES, ("green", NAMES[:8], NAMES[2:4])])})
    after = evaluated(WINOGAVIL, data).metrics
    assert all(after[name] == found.metrics[name] for name in ("jaccard_score_10-12", "jaccard_score_5-6"))
    assert after["avg_jaccard_score"] != found.metrics["avg_jaccard_score"]


def test_every_image_is_read_once_wherever_it_is(data):
    packed, root = evaluated(WINOGAVIL, data), data / "winogavil"
    with web_server() as site:
        site.files |= {f"/winogavil/{path.name}": path.read_bytes() for path in root.iterdir()}
        assert evaluated(WINOGAVIL, site.url) == packed
    (root / "winogavil_images.zip").unlink()
    names = {name: f"winogavil_images/{name}.{'png' if name == 'sea' else 'jpg'}" for name in NAMES}
    write(root, {names[name]: encoded(shade) for name, shade in SHADES.items()})
    assert evaluated(WINOGAVIL, data) == packed


def test_a_damaged_entry_of_the_zip_file(data):
    path = data / "winogavil" / "winogavil_images.zip"
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("winogavil_images/pink.jpg").header_offset
    content = path.read_bytes()
    path.write_bytes(content[: start + 60] + bytes(20) + content[start + 80 :])
    assert evaluated(WINOGAVIL, data).report.keys("image_unreadable") == ("103", "104", "105", "106")


def test_nothing_left_that_counts(data):
    packed = data / "winogavil" / "winogavil_images.zip"
    packed.write_bytes(made.instance_pictures({name: encoded(SHADES[name]) for name in NAMES[:6]}))
    with fails(ValueError, "2 samples read, 5 skipped"):
        evaluated(WINOGAVIL, data)
    packed.write_bytes(packed.read_bytes()[:-100])
    with fails(ValueError, "winogavil_images.zip"):
        evaluated(WINOGAVIL, data)


def test_of_a_large_file_the_first_thousand_are_read(data):
    entries = [made.shared(number % 4, list(COLOURS)[number % 4]) for number in range(1000)]
    write(data, {FILES[GPT]: json.dumps(entries)[:-1] + ', {"image": "what follows is not looked at'})
    assert evaluated(GPT, data).num_images == 1000


ROW = 'ID,candidates,cue,associations\n0,"[""a"", ""b""]",cue,"[""a""]"\n'
CASE = RELATIONS[0]


MALFORMED = [
    (RELATION, [CASE | {"true_caption": None}], "entry 0: true_caption"),
    (RELATION, [CASE | {"false_caption": ""}], "entry 0: false_caption"),
    (RELATION, [CASE | {"image_path": 7}], "entry 0: image_path"),
    (RELATION, [CASE | {"image_path": "../a.png"}], "entry 0: image_path"),
    (RELATION, [CASE | {"bbox_x": "1"}], "entry 0: bbox_x"),
    (RELATION, [CASE | {"bbox_w": 0}], "entry 0: bbox_w"),
    (RELATION, [CASE | {"relation_name": "by"}], "no group of VG-Relation counts"),
    (RELATION, "[1]", "entry 0"),
    (RELATION, "7", "'7'"),
    (RELATION, "[", "visual_genome_relation.json"),
    (RELATION, '[{"image": "a", "image": "b"}]', "'image'"),
    (ATTRIBUTES, [CASE | {"attributes": ["red"]}], "entry 0: attributes"),
    (CREPE, None, "swap_att.json"),
    (CREPE, {"0": {"filename": "../secret.jpg"}}, "entry '0': filename"),
    (CREPE, "[" * 100_000, "swap_att.json"),
    (GROUND, '{"id": 0}\n', "line 1: image_0"),
    (GROUND, "\n{\n", "line 2"),
    (GROUND, "", "examples.jsonl"),
    (WINOGAVIL, ROW + '1,"[""a"", ""b""]", ,"[""a""]"', "line 3: cue"),
    (WINOGAVIL, ROW + '0,"[""a"", ""b""]",cue,"[""a""]"', "line 3: ID '0'"),
    (WINOGAVIL, ROW + '1,"a, b",cue,"[""a""]"', "line 3: candidates"),
    (WINOGAVIL, ROW + f'1,"{"[" * 50_000}",cue,"[""a""]"', "line 3: candidates"),
    (WINOGAVIL, ROW + '1,"[""../a""]",cue,"[""../a""]"', "line 3: candidates"),
    (WINOGAVIL, ROW + '1,"[""a""]",cue', "line 3"),
    (WINOGAVIL, ROW + '1,"[""a""]",cue,"[""b""]"', "line 3"),
    (WINOGAVIL, ROW + '1,"[""a""],a,[]', "line 3"),
    (WINOGAVIL, "ID,cue\n1,a\n", "line 2: candidates"),
    (WINOGAVIL, b"ID,cue\xff", "UTF-8"),
    (GPT, "{}", "'{}'"),
    (GPT, "[]", SHAREGPT4V),
    (GPT, '[{"image": "a.jpg"}]', "entry 0: conversations"),
    (GPT, [{"image": "/a.jpg", "conversations": [{}, {"value": "b"}]}], "entry 0: image"),
    (GPT, '[{"image": ', "entry 0"),
    (GPT, "[" * 100_000, "entry 0"),
    (GPT, None, SHAREGPT4V),
    (LANGUAGES, '{"image/key": "../a"}', "line 1: image/key"),
    (LANGUAGES, '{"image/key": "a", "de": {"caption": []}}', "line 1: de"),
]


@pytest.mark.parametrize(("key", "content", "message"), MALFORMED)
def test_malformed_files(key, content, message, data):
    if content is None:
        (data / FILES[key]).unlink()
    else:
        write(data, {FILES[key]: content})
    with fails(ValueError, message) as caught:
        opened(key, data)
    assert str(data) in str(caught.value) or "counts" in message


MISSING = [
    (RELATION, "aro/images", ["aro/images", "VG-Relation"]),
    (CREPE, "sugarcrepe/val2017", ["sugarcrepe/val2017", "SugarCrepe"]),
    (GROUND, "winoground/images.zip", ["winoground/images", "Winoground"]),
    (WINOGAVIL, "winogavil/winogavil_images.zip", ["winogavil_images", "WinoGAViL"]),
    (URBAN, "urban1k/image/1.jpg", ["1.txt", "1"]),
]


@pytest.mark.parametrize(("key", "images", "words"), MISSING)
def test_missing_images_are_named(key, images, words, data):
    shutil.rmtree(data / images) if (data / images).is_dir() else (data / images).unlink()
    with fails(ValueError, *words):
        opened(key, data)
