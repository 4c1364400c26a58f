"""Text towers of another model's space: who says so, who takes them, and who refuses."""

import json
import pickle

import attrs
import pytest
import torch

import mobileclip
from mobileclip import ImageTextModel
from mobileclip.cli.__main__ import main
from mobileclip.collections import Collection, IndexOptions, ModelSource
from mobileclip.data import TextPipelineSpec
from mobileclip.data.text.ngrams import KnownNgrams, pack_ngrams
from mobileclip.datasets.sources import TextPair
from mobileclip.encoders import TextTransformerSpec, load_model, save_model
from mobileclip.encoders.checkpoints import TrainingProvenance, read_checkpoint
from mobileclip.evaluation import EvaluationSpec, Session, candidate_of, evaluate_models, summarize
from mobileclip.evaluation.tables import language_table, points
from mobileclip.inference import ModelIdentity, space_of
from mobileclip.inputs import TextInput
from mobileclip.losses import TextDistillationLossSpec
from mobileclip.reinforce import reinforce_texts
from mobileclip.reparam import reparameterize
from mobileclip.training import CosineSchedule, RunSpec, TrainingSpec, run
from tests.build.commands import refused, worked
from tests.collections.pictures import draw
from tests.encoders.small import SMALL_MCT, randomised
from tests.errors import fails, told

TOWER = TextTransformerSpec(
    width=16, num_heads=2, depth=0, embedding_dim=24, pool="mean", input=TextInput(context_length=6, vocab_size=900)
)
ONE_STEP = CosineSchedule(warmup_steps=0, total_steps=1)
ENGLISH, GERMAN = ("a red arrow", "a blue heart"), ("ein roter Pfeil", "ein blaues Herz")


class Teacher:
    name, weights_sha256, dim = "any", "0" * 64, 24

    def encode_texts(self, texts):
        return torch.ones(len(texts), 24)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model, another one, and a tower of the first one's space as a run leaves it."""
    folder = tmp_path_factory.mktemp("towers")
    for seed, name in enumerate(("model", "other")):
        save_model(randomised(SMALL_MCT, seed), folder / f"{name}.safetensors")
    pairs = [TextPair(text=text, teacher_text=text, language="de") for text in GERMAN]
    pairs += [TextPair(text=text, teacher_text=text, language="en") for text in ENGLISH]
    space = space_of(folder / "model.safetensors").to_json()
    reinforce_texts(pairs, Teacher(), folder / "texts", space=space)
    training = TrainingSpec(
        loss=TextDistillationLossSpec(),
        schedule=CosineSchedule(warmup_steps=1, total_steps=2),
        ema_decay=0.5,
        checkpoint_every_steps=1,
    )
    data = TextPipelineSpec(texts=folder / "texts", batch_size=2, text=TOWER.input, shares={"de": 1.0})
    run(RunSpec(model=TOWER, data=data, training=training), folder / "run")
    return folder


@pytest.fixture
def tower(files):
    return files / "run" / "model.safetensors"


def test_a_run_names_the_space_of_its_texts_in_every_checkpoint(files, tower):
    space = space_of(files / "model.safetensors")
    written = read_checkpoint(next((files / "run" / "checkpoints").iterdir())).provenance.space
    assert space_of(tower) == space == ModelIdentity.from_json(written)
    known = KnownNgrams(read_checkpoint(tower).provenance.ngrams)
    assert [known.share(text) for text in GERMAN] == [1.0, 1.0]
    assert all(known.share(text) < 0.7 for text in ENGLISH)  # no batch had them


def test_a_run_from_a_tower_has_the_space_of_its_own_texts(files, tower, tmp_path):
    reinforce_texts([TextPair(text="x", teacher_text="x")], Teacher(), tmp_path / "texts")
    data = TextPipelineSpec(texts=tmp_path / "texts", batch_size=1, text=TOWER.input)
    training = TrainingSpec(loss=TextDistillationLossSpec(), schedule=ONE_STEP)
    path = run(RunSpec(model=TOWER, data=data, training=training, initial_weights=tower), tmp_path / "out")
    assert read_checkpoint(path).provenance.space == ""
    with fails(ValueError, str(path)):
        space_of(path)


def test_what_a_tower_was_taught_stays_through_load_save_fold_and_convert(files, tower, tmp_path):
    stored = read_checkpoint(tower).provenance
    save_model(reparameterize(load_model(tower, fold=False).half()), tmp_path / "folded.safetensors")
    main(["convert", str(tower), "-o", str(tmp_path / "short.safetensors"), "--context-length", "4", "--fold"])
    for name in ("folded", "short"):
        found = read_checkpoint(tmp_path / f"{name}.safetensors").provenance
        assert found.space == stored.space
        assert torch.equal(found.ngrams, stored.ngrams)


def test_other_forms_and_parts_of_a_model_are_of_its_space(files, tmp_path):
    model = files / "model.safetensors"
    folded, again, text = (str(tmp_path / f"{name}.safetensors") for name in ("folded", "again", "text"))
    main(["convert", str(model), "-o", folded, "--fold", "--precision", "float16"])
    main(["convert", folded, "-o", again, "--image-size", "96"])
    main(["convert", folded, "-o", text, "--tower", "text"])
    assert space_of(folded) == space_of(again) == space_of(text) == space_of(model)
    clip = mobileclip.load(model, text_model=text)
    torch.testing.assert_close(
        clip.encode_text(ENGLISH), mobileclip.load(model).encode_text(ENGLISH), atol=2e-3, rtol=0
    )


def test_a_tower_encodes_texts_in_place_of_the_models_own(files, tower):
    own = mobileclip.load(files / "model.safetensors")
    clip = mobileclip.load(files / "model.safetensors", text_model=files / "run")
    alone, tokenizer = load_model(tower), clip.tokenizer
    assert clip.model.spec.text == TOWER
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(alone(tokenizer(list(GERMAN))), dim=-1)
    torch.testing.assert_close(clip.encode_text(GERMAN), expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(clip)).encode_text(GERMAN), expected)
    picture = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    assert torch.equal(clip.encode_pixels(picture), own.encode_pixels(picture))
    assert not torch.allclose(clip.encode_text(ENGLISH), own.encode_text(ENGLISH), atol=0.05)


def test_a_model_of_another_space_refuses_it_by_name(files, tower):
    model, other = files / "model.safetensors", files / "other.safetensors"
    for checkpoint, given, options, *named in (
        (other, tower, {}, str(tower), str(other)),
        (model, other, {}, str(other)),
        (model, tower, {"context_length": 4}, str(tower)),
    ):
        with fails(ValueError, *named):
            mobileclip.load(checkpoint, text_model=given, **options)


def test_a_damaged_space_is_said(files, tower, tmp_path):
    model = load_model(tower)
    model.provenance = TrainingProvenance(space="{}")
    save_model(model, tmp_path / "damaged.safetensors")
    with fails(ValueError, str(tmp_path / "damaged.safetensors")):
        space_of(tmp_path / "damaged.safetensors")
    model.provenance = attrs.evolve(model.provenance, ngrams=torch.zeros(2, 2))
    save_model(model, tmp_path / "damaged.safetensors")
    with fails(ValueError, "torch.float32"):
        KnownNgrams(read_checkpoint(tmp_path / "damaged.safetensors").provenance.ngrams)


def test_texts_go_to_the_tower_that_knows_more_of_their_ngrams(files, tower):
    clip = mobileclip.load(files / "model.safetensors")
    german = load_model(tower)
    clip.model.text_encoder.provenance = TrainingProvenance(ngrams=pack_ngrams(ENGLISH))
    both = type(clip)(clip.model, text_towers=[german])
    alone = mobileclip.load(files / "model.safetensors", text_model=tower)
    texts = ["a red heart", "roter Pfeil!", "?", "blue", "Herz"]
    expected = [model.encode_text(text)[0] for model, text in zip([clip, alone, clip, clip, alone], texts, strict=True)]
    found = both.encode_text(texts, batch_size=2)
    torch.testing.assert_close(found, torch.stack(expected))
    assert both.tokenizer is both.text_sides[0].tokenizer


def test_case_punctuation_and_order_are_no_part_of_ngrams():
    known = KnownNgrams(pack_ngrams(GERMAN))
    assert [known.share(text) for text in ("Ein ROTER, Pfeil", "roter", "ein\tPfeil")] == [1.0] * 3
    assert known.share("кот") < 0.1
    assert known.share("\N{BLACK HEART SUIT} !") == 0.0


def test_ngrams_of_many_words_stay_small_and_tell_what_was_there():
    words = [f"{first}{second}{third}" for first in "abcdefghij" for second in range(100) for third in "klmnop"]
    packed = pack_ngrams(words)
    assert len(packed) < 25_000
    known = KnownNgrams(packed)
    assert min(map(known.share, words[::97])) == 1.0
    others = [f"{word}{word[::-1]}" for word in ("zyx", "wvu", "tsr", "qzy")]
    assert max(map(known.share, others)) < 0.1


@pytest.fixture(scope="module")
def pictures(files):
    """Pictures with an index of them, made by the model alone."""
    for number in range(5):
        draw(files / "photos" / f"{number}.png", number)
    index = Collection.create(files / "index", ModelSource(checkpoint=str(files / "model.safetensors")))
    index.add(files / "photos", options=IndexOptions(show_progress=False, num_workers=1))
    return files / "photos"


def test_an_index_is_searched_with_it_and_no_picture_is_read_again(files, tower, pictures, capsys, monkeypatch):
    clip = mobileclip.load(files / "model.safetensors", text_model=tower)
    scores = (clip.encode_image(sorted(pictures.iterdir())) @ clip.encode_text(GERMAN[0])[0]).tolist()
    monkeypatch.setattr(ImageTextModel, "encode_pixels", None)
    command = ("search", GERMAN[0], "-i", files / "index", "--text-model", files / "run", "--json")
    found = json.loads(worked(capsys, *command))
    assert [match["score"] for match in found] == pytest.approx(sorted(scores, reverse=True), abs=2e-3)
    index = Collection.open(files / "index", text_model=tower)
    assert [match.path for match in index.search(GERMAN[0])] == [match["path"] for match in found]
    assert index.store.about.identity == space_of(files / "model.safetensors")


def test_commands_take_it_and_refuse_that_of_another_model(files, tower, pictures, capsys):
    model, other = files / "model.safetensors", files / "other.safetensors"
    picture, labels = pictures / "0.png", ("Pfeil", "Herz")
    command = ("classify", picture, *labels, "--json", "--text-model", tower, "-m")
    found = json.loads(worked(capsys, *command, model))
    assert found == pytest.approx(mobileclip.load(model, text_model=tower).classify(picture, labels), abs=1e-5)
    told(refused(capsys, str(tower), *command, other), str(other))
    missing = tower.with_name("none.safetensors")
    refused(capsys, "none.safetensors", "search", "x", "-i", files / "index", "--text-model", missing)


def test_an_evaluation_has_a_row_for_every_language_with_the_tower_that_reads_it(files, tower, pictures, tmp_path):
    rows = [
        {"image": f"photos/{path.name}", "caption": f"{texts[number % 2]} {number}", "language": language}
        for number, path in enumerate(sorted(pictures.iterdir()))
        for language, texts in (("de", GERMAN), ("en", ENGLISH))
    ]
    own = files / "own.jsonl"
    own.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    spec = EvaluationSpec(datasets=(str(own),), output=tmp_path / "out", device="cpu", batch_size=4)
    model = files / "model.safetensors"
    run = evaluate_models([str(model)], attrs.evolve(spec, text_model=("own", str(tower))))
    assert [one.name for one in run.models] == ["model", "model with run"]
    assert all(list(one.results) == ["own", "own/de", "own/en"] for one in run.models)
    first, second = (one.results for one in run.models)
    table = language_table(summarize(run))
    assert [(row[0].text, row[1].text) for row in table.rows] == [
        ("own, de", "model"), ("own, de", "model with run"), ("own, en", "model with run"),
    ]  # fmt: skip
    difference = second["own/de"].main_metric - first["own/en"].main_metric
    assert table.rows[1][2].text == points(difference)
    paired = second["own/de"].outcomes.compared_with(first["own/en"].outcomes)
    assert table.rows[1][2].small == f"{points(paired.interval.low)} to {points(paired.interval.high)}"
    values = [records.metrics["image_retrieval_recall@5"] for records in (second["own/de"], first["own/en"])]
    assert table.rows[1][4].text == f"{100 * values[0] / values[1]:.0f}"
    english = mobileclip.load(model)
    english.model.text_encoder.provenance = TrainingProvenance(ngrams=pack_ngrams(ENGLISH))
    both = ImageTextModel(english.model, text_towers=[load_model(tower)])
    session = Session.of(candidate_of(both, name="both"), show_progress=False, batch_size=4)
    texts = [*GERMAN, *ENGLISH]
    expected = torch.cat([mobileclip.load(model, text_model=tower).encode_text(GERMAN), english.encode_text(ENGLISH)])
    torch.testing.assert_close(torch.nn.functional.normalize(session.encode_texts(texts)), expected)
