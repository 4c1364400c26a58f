"""The choices of published files: by hand, one by one, and with scikit-learn's Jaccard index."""

import io
import json
import re
import shutil
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from mobileclip.evaluation import SUITES, find_task, published_results
from mobileclip.evaluation.tasks.choices import matches
from tests.contracts.tasks import check_task
from tests.errors import fails
from tests.evaluation.models import COLOURS, ColourModel, NameTower, session_of, tokenize
from tests.evaluation.tasks.choices.data import (
    INSTANCES,
    NAMES,
    RELATIONS,
    SHADES,
    SHAREGPT4V,
    evaluated,
    instance_pictures,
    instances_table,
    opened,
    shared,
    write,
    write_all,
)
from tests.evaluation.tasks.test_evaluate import encoded, to_tensor
from tests.lazily import lazily
from tests.stores import web_server

reference = lazily("sklearn.metrics")
WINOGAVIL, PUBLISHED_TABLE = "misc/winogavil", "winogavil/winogavil_dataset.csv"


@pytest.fixture
def data(tmp_path):
    return write_all(tmp_path)


@pytest.mark.parametrize(
    ("key", "metrics"),
    [
        ("comp/sugarcrepe_swap_att", {"accuracy": 3 / 5}),
        ("comp/winoground", {"text_score": 1 / 3, "image_score": 1 / 3, "group_score": 1 / 3}),
        (
            "longclip/urban1k",
            {"text_retrieval_recall@1": 1 / 2, "image_retrieval_recall@1": 1 / 2, "mean_recall@1": 1 / 2},
        ),
        ("longclip/sharegpt4v-1k", {"mean_recall@1": 1.0}),
    ],
)
def test_metrics_by_hand(key, metrics, data):
    evaluation = evaluated(key, data)
    result, (*_, main) = evaluation, metrics.values()
    assert metrics | {"main_metric": main} == pytest.approx(
        {name: result.metrics[name] for name in [*metrics, "main_metric"]}
    )
    assert (result.num_skipped, evaluation.report.num_skipped) == (0, 0)
    assert float(evaluation.outcomes.values.mean()) == pytest.approx(main)


def test_questions_about_one_picture_are_not_independent(data):
    assert len(evaluated("comp/sugarcrepe_swap_att", data).outcomes.values) == 3


def test_published_figures_have_their_metrics(data):
    assert set(SUITES["sugarcrepe"]) <= set(published_results("mobileclip2_s0"))
    metrics = evaluated("longclip/urban1k", data).metrics
    assert set(published_results("mobileclip2_b")["longclip/urban1k"].metrics) <= set(metrics)


@pytest.mark.parametrize(
    ("key", "picture", "reason", "lost"),
    [
        (
            "aro/vg_relation",
            "aro/images/a.png",
            "image_truncated",
            ("a.png, entry 0", "a.png, entry 1", "a.png, entry 2"),
        ),
        ("comp/sugarcrepe_swap_att", "sugarcrepe/val2017/2.jpg", "image_missing", ("1", "2")),
        ("comp/winoground", "ex_1_img_0", "image_missing", ("1", "2")),
        (WINOGAVIL, "sea", "image_missing", ("103", "104", "105", "106")),
        ("longclip/urban1k", "urban1k/image/3.jpg", "image_truncated", ("3",)),
        ("longclip/sharegpt4v-1k", "sharegpt4v/sam/images/sa_2.jpg", "image_missing", ("sam/images/sa_2.jpg",)),
    ],
)
def test_a_lost_picture_costs_its_cases(key, picture, reason, lost, data):
    """Each is counted once, by its key, and the contract of tasks is kept."""
    if picture in ("sea", "ex_1_img_0"):
        path = data / ("winogavil/winogavil_images.zip" if picture == "sea" else "winoground/images.zip")
        with zipfile.ZipFile(path) as archive:
            kept = {name: archive.read(name) for name in archive.namelist() if picture not in name}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in kept.items():
                archive.writestr(name, content)
    elif reason == "image_missing":
        (data / picture).unlink()
    else:
        (data / picture).write_bytes((data / picture).read_bytes()[:-30])
    if key == "aro/vg_relation":  # of which every group that counts has cases of the other picture
        cases = [case | {"relation_name": "on"} for case in RELATIONS]
        (data / "aro" / "visual_genome_relation.json").write_text(json.dumps(cases))
    whole = evaluated(key, data)
    assert whole.report.keys(reason) == lost
    assert whole.report.num_skipped == whole.num_skipped == len(lost)
    assert whole.report.num_read == whole.num_images > 0
    check_task(key, data, session_of(batch_size=4))


@given(st.integers(0, 10_000))
def test_matches_one_by_one(seed):
    generator = torch.Generator().manual_seed(seed)
    pictures, captions = torch.randn(2, 5, 2, 3, generator=generator)
    by_text, by_image = matches(pictures, captions)
    for number in range(5):
        score = [
            [float(torch.cosine_similarity(pictures[number, one], captions[number, two], dim=0)) for two in (0, 1)]
            for one in (0, 1)
        ]
        assert bool(by_text[number]) == (score[0][0] > score[0][1] and score[1][1] > score[1][0])
        assert bool(by_image[number]) == (score[0][0] > score[1][0] and score[1][1] > score[0][1])


class TestWinoGavil:
    """Which images a cue goes with."""

    def scores_by_hand(self, model, transform, tokenizer, images, instances):
        """The Jaccard index of every instance with the number of its candidates: images and cues go in one by one."""
        scores = []
        with torch.inference_mode():
            for cue, candidates, associations in instances:
                article = "An" if cue.lower().startswith(("a", "e", "i", "o", "u")) else "A"
                text = model.encode_text(tokenizer([f"{article} {cue.lower()}"]), normalize=True)
                pixels = [transform(Image.open(io.BytesIO(images[name])).convert("RGB")) for name in candidates]
                embedded = [model.encode_image(one[None], normalize=True) for one in pixels]
                similarity = np.array([float(text @ one.T) for one in embedded])
                true = np.isin(candidates, associations)
                chosen = np.isin(np.arange(len(candidates)), np.argsort(similarity)[-true.sum() :])
                scores.append((len(candidates), reference.jaccard_score(true, chosen)))
        return scores

    def colour_scores(self, instances=INSTANCES):
        images = {name: encoded(shade) for name, shade in SHADES.items()}
        return self.scores_by_hand(ColourModel().eval(), to_tensor, tokenize, images, instances)

    @pytest.mark.parametrize(
        ("cue", "prompt"),
        [("werewolf", "A werewolf"), ("Apple", "An apple"), ("USA", "An usa"), ("éclair", "A éclair")],
    )
    def test_prompts_are_those_of_the_public_evaluation(self, data, cue, prompt):
        write(data, {PUBLISHED_TABLE: instances_table([(cue, NAMES, NAMES[:2])])})
        texts = []

        def remember(several):
            texts.extend(several)
            return tokenize(several)

        evaluated(WINOGAVIL, data, session_of(ColourModel(text=NameTower(remember))))
        assert set(texts) == {prompt}

    @pytest.mark.parametrize("batch_size", [1, 5, 64])
    def test_metrics(self, data, batch_size):
        evaluation = evaluated(WINOGAVIL, data, session_of(batch_size=batch_size))
        metrics, scores = dict(evaluation.metrics), self.colour_scores()
        assert len({score for _, score in scores}) > 2
        groups = {"5": (5,), "6": (6,), "10": (10,), "12": (12,), "5-6": (5, 6), "10-12": (10, 11, 12)}
        for name, sizes in groups.items():
            own = [score for size, score in scores if size in sizes]
            assert metrics.pop(f"jaccard_score_{name}") == pytest.approx(np.mean(own))
            assert metrics.pop(f"count_{name}") == len(own)
        assert metrics == {
            "avg_jaccard_score": pytest.approx(np.mean([score for _, score in scores])),
            "main_metric": evaluation.main_metric,
        }
        assert (evaluation.key, evaluation.dataset) == (WINOGAVIL, "WinoGAViL")
        assert (evaluation.num_images, evaluation.report.num_read) == (7, 7)
        assert evaluation.outcomes.values.tolist() == pytest.approx([score for size, score in scores if size >= 10])
        assert evaluation.outcomes.interval.low < evaluation.main_metric < evaluation.outcomes.interval.high

    def test_what_counts_is_ten_candidates_and_more(self, data):
        result = evaluated(WINOGAVIL, data)
        assert result.main_metric == result.metrics["jaccard_score_10-12"] != result.metrics["avg_jaccard_score"]
        # Between six and ten candidates, which the published data do not have, an instance counts in the mean alone.
        write(data, {PUBLISHED_TABLE: instances_table([*INSTANCES, ("green", NAMES[:8], NAMES[2:4])])})
        more = evaluated(WINOGAVIL, data)
        assert more.metrics["jaccard_score_10-12"] == result.main_metric
        assert more.metrics["jaccard_score_5-6"] == result.metrics["jaccard_score_5-6"]
        assert more.metrics["avg_jaccard_score"] != result.metrics["avg_jaccard_score"]

    def test_every_image_is_read_once_wherever_it_is(self, data):
        packed, root = evaluated(WINOGAVIL, data), data / "winogavil"
        with web_server() as site:
            for path in root.iterdir():
                site.files[f"/winogavil/{path.name}"] = path.read_bytes()
            assert evaluated(WINOGAVIL, site.url) == packed
        (root / "winogavil_images.zip").unlink()
        for name, shade in SHADES.items():
            write(root / "winogavil_images", {f"{name}.{'png' if name == 'sea' else 'jpg'}": encoded(shade)})
        assert evaluated(WINOGAVIL, data) == packed

    def test_a_damaged_entry_of_the_zip_file(self, data):
        path = data / "winogavil" / "winogavil_images.zip"
        with zipfile.ZipFile(path) as archive:
            start = archive.getinfo("winogavil_images/pink.jpg").header_offset
        content = bytearray(path.read_bytes())
        content[start + 60 : start + 80] = bytes(20)
        path.write_bytes(content)
        assert evaluated(WINOGAVIL, data).report.keys("image_unreadable") == ("103", "104", "105", "106")

    def test_nothing_left_that_counts(self, data):
        packed = data / "winogavil" / "winogavil_images.zip"
        packed.write_bytes(instance_pictures({name: encoded(SHADES[name]) for name in NAMES[:6]}))
        with fails(ValueError, "2 samples read, 5 skipped"):
            evaluated(WINOGAVIL, data)
        packed.write_bytes(packed.read_bytes()[:-100])
        with fails(ValueError, "winogavil_images.zip"):
            evaluated(WINOGAVIL, data)
        packed.unlink()
        with fails(ValueError, "winogavil_images", "WinoGAViL"):
            opened(WINOGAVIL, data)


def test_of_a_large_file_the_first_thousand_are_read(data):
    entries = [shared(number % 4, list(COLOURS)[number % 4]) for number in range(1000)]
    write(data / "sharegpt4v", {SHAREGPT4V: json.dumps(entries)[:-1] + ', {"image": "what follows is not looked at'})
    assert evaluated("longclip/sharegpt4v-1k", data).num_images == 1000


RELATION, ATTRIBUTES, COCO = "aro/vg_relation", "aro/vg_attribution", "aro/coco_order"
ROW = 'ID,candidates,cue,associations\n0,"[""a"", ""b""]",cue,"[""a""]"\n'
CREPE, GROUND, GPT = "comp/sugarcrepe_add_att", "comp/winoground", "longclip/sharegpt4v-1k"
LANGUAGES = "multilingual/crossmodal3600"
FILES = {
    RELATION: "aro/visual_genome_relation.json",
    ATTRIBUTES: "aro/visual_genome_attribution.json",
    WINOGAVIL: PUBLISHED_TABLE,
    CREPE: "sugarcrepe/add_att.json",
    GROUND: "winoground/examples.jsonl",
    GPT: f"sharegpt4v/{SHAREGPT4V}",
    LANGUAGES: "xm3600/captions.jsonl",
}


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
    (CREPE, None, "add_att.json"),
    (CREPE, {"0": {"filename": "../secret.jpg"}}, "entry '0': filename"),
    (CREPE, "[" * 100_000, "add_att.json"),
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
    (LANGUAGES, "\n{\n", "line 2"),
    (LANGUAGES, '{"image/key": "../a"}', "line 1: image/key"),
    (LANGUAGES, '{"image/key": "a", "de": {"caption": []}}', "line 1: de"),
]


@pytest.mark.parametrize(("key", "content", "message"), MALFORMED)
def test_malformed_files(key, content, message, data):
    if content is None:
        (data / FILES[key]).parent.mkdir(exist_ok=True)
        (data / FILES[key]).unlink(missing_ok=True)
    else:
        write(data, {FILES[key]: content})
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        opened(key, data)
    assert str(data) in str(caught.value) or "counts" in message


@pytest.mark.parametrize(
    ("key", "images"),
    [(RELATION, "aro/images"), ("comp/sugarcrepe_swap_att", "sugarcrepe/val2017"), (GROUND, "winoground/images.zip")],
)
def test_missing_images_are_named(key, images, data):
    shutil.rmtree(data / images) if (data / images).is_dir() else (data / images).unlink()
    with fails(ValueError, images.removesuffix(".zip"), find_task(key, str(data)).name):
        opened(key, data)


def test_a_caption_without_its_picture_is_named(data):
    (data / "urban1k" / "image" / "1.jpg").unlink()
    with fails(ValueError, "1.txt", "1"):
        opened("longclip/urban1k", data)


def test_where_it_is_is_said():
    with fails(ValueError, "winoground", "request the data at"):
        find_task("comp/winoground")
