"""Whole runs: models from files and of open_clip on data sets of drawn scenes, resumed and broken."""

import io
import json
import shutil
from collections import Counter
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest
import torch
from rich.console import Console

from mobileclip import evaluation, storage
from mobileclip.data import ImageTransform, SkipReport, decode_image
from mobileclip.encoders import DualEncoder
from mobileclip.evaluation import SUITE, EvaluationSpec, evaluate_models, find_task, open_candidate, read_results
from mobileclip.evaluation.features import fitting, free_memory, measure_latency
from mobileclip.evaluation.tasks.zero_shot import ZeroShotTask
from mobileclip.interop import OpenClipSource, load_open_clip
from mobileclip.recipes import run_recipe
from mobileclip.recipes.tiny import SHAPES
from tests.build.commands import run as command
from tests.data.made_samples import encoded
from tests.errors import fails, told
from tests.evaluation.conftest import COUNT
from tests.evaluation.scene_models import TEMPLATES
from tests.evaluation.tasks.choices.data import write
from tests.preloaded import preloaded
from tests.reinforce.open_clip_models import write_tiny_models
from tests.stores import web_server

PETS, FLICKR = "vtab/pets", SUITE[30].key
FOLDERS = {PETS: "wds_vtab-pets_test", FLICKR: "wds_flickr30k"}
PROMPTS = "wds_vtab-pets_test/zeroshot_classification_templates.txt"


def spec_of(root, **choices):
    return EvaluationSpec(data=str(root), output=root / "out", **{"datasets": tuple(FOLDERS), **choices})


def model_of(root, number=0):
    return str(root / f"model{number}.safetensors")


def run_of(root, **choices):
    """Evaluate the first model."""
    return evaluate_models([model_of(root)], spec_of(root, **choices))


def metrics_of(root, folder, number=0, **choices):
    """Evaluate a model on one data set, without a run."""
    session = evaluation.Session.of(open_candidate(model_of(root, number), **choices), show_progress=False)
    found = evaluation.evaluate_benchmark(session, evaluation.open_benchmark(root / folder))
    return pytest.approx(found.metrics, abs=1e-6)


@pytest.fixture
def counted(monkeypatch):
    """The number of images and of texts that any model of ours encodes."""
    counted, real = Counter(), {"image": DualEncoder.encode_image, "text": DualEncoder.encode_text}
    for kind in ("image", "text"):

        def encode(self, batch, normalize=False, *, kind=kind):
            counted[kind] += len(batch)
            return real[kind](self, batch, normalize)

        monkeypatch.setattr(DualEncoder, f"encode_{kind}", encode)
    return counted


def test_the_numbers_are_those_of_one_data_set_after_another(root):
    done = evaluate_models([model_of(root, 0), model_of(root, 1)], spec_of(root))
    assert (done.failures, [model.name for model in done.models]) == ((), ["model0", "model1"])
    for number, model in enumerate(done.models):
        for key, folder in FOLDERS.items():
            assert model.results[key].metrics == metrics_of(root, folder, number)
            assert model.results[key].num_images == COUNT
        assert read_results(model.path).keys() == FOLDERS.keys()
        assert open_candidate(model_of(root, number)).weights_sha256[:8] in str(model.path)
    assert len({model.results[PETS].main_metric for model in done.models}) == 2
    twin = attrs.evolve(done.models[0], name="mobileclip_s0", reference="mobileclip_s0")
    measured, published = evaluation.summarize(attrs.evolve(done, models=(twin,)))
    names = (measured.name, measured.reference, published.name)
    assert names == ("mobileclip_s0 (measured)", "mobileclip_s0", "mobileclip_s0")


def test_nothing_is_encoded_twice(root, counted, monkeypatch):
    first = run_of(root).models[0]
    assert counted["image"] == 2 * COUNT
    counted.clear()
    assert run_of(root).models[0].results == first.results
    shutil.rmtree(first.path.parent)  # embeddings are left
    assert run_of(root).models[0].results == first.results

    scored = ZeroShotTask.score

    def halved(self, features):
        found = scored(self, features)
        return attrs.evolve(found, metrics={name: value / 2 for name, value in found.metrics.items()})

    with monkeypatch.context() as patch:
        patch.setattr(ZeroShotTask, "score", halved)
        changed = run_of(root, datasets=(PETS,)).models[0]
    assert changed.results[PETS].main_metric == pytest.approx(first.results[PETS].main_metric / 2)
    assert read_results(changed.path)[PETS] == changed.results[PETS]
    assert len(changed.path.read_text().splitlines()) == 2, "the old line is replaced"
    assert not counted

    (root / PROMPTS).write_text("{c}!")
    run_of(root)
    assert counted == {"text": len(SHAPES)}, "other prompts need their texts alone"
    counted.clear()
    shutil.copy(model_of(root, 1), model_of(root))
    assert run_of(root).models[0].path != first.path
    assert counted["image"] == 2 * COUNT, "other weights are evaluated again"


def test_without_the_cache_results_are_kept_and_embeddings_are_not(root, counted):
    for _ in range(2):
        counted.clear()
        done = run_of(root, cache=False).models[0]
        assert not (root / "out" / "features").exists()
        assert len(read_results(done.path)) == 2
        assert counted["image"] == 2 * COUNT, "no number is believed"


def test_both_filters_stand_side_by_side_and_are_not_mixed_up(root, counted):
    filters = ("bilinear", "bicubic")
    done = run_of(root, datasets=(PETS,), interpolation=filters)
    assert [model.name for model in done.models] == ["model0 (bilinear)", "model0 (bicubic)"]
    assert counted["image"] == 2 * COUNT
    for model, interpolation in zip(done.models, filters, strict=True):
        record, candidate = model.results[PETS], open_candidate(model_of(root), interpolation=interpolation)
        assert record.evaluated["model"] == candidate.fingerprint
        assert record.metrics == metrics_of(root, FOLDERS[PETS], interpolation=interpolation)
        assert read_results(model.path) == {PETS: record}
    assert open_candidate(model_of(root)).fingerprint == done.models[0].results[PETS].evaluated["model"]
    counted.clear()
    again = run_of(root, datasets=(PETS,), interpolation=("bicubic",))
    assert (counted["image"], again.models[0].results) == (0, done.models[1].results)


def test_a_text_of_several_data_sets_is_encoded_once(root, counted):
    shutil.copytree(root / FOLDERS[PETS], root / "wds_vtab-dtd_test")
    (root / PROMPTS.replace("pets", "dtd")).write_text(f"{TEMPLATES[0].replace('{}', '{c}')}\n{{c}}?")
    both = run_of(root, datasets=(PETS, "vtab/dtd")).models[0]
    assert counted["text"] == 3 * len(SHAPES), "two templates, and one that the other data set has not"
    assert both.results["vtab/dtd"].metrics == metrics_of(root, "wds_vtab-dtd_test")


def test_sizes_lengths_precisions_and_templates_stand_side_by_side(root):
    for choices in ({}, {"image_size": 32}, {"image_size": 96}, {"context_length": 20}, {"precision": "bfloat16"}, {}):
        run_of(root, datasets=(PETS,), **choices)
    (root / PROMPTS).write_text("{c}!")
    run_of(root, datasets=(PETS,))
    text = "".join(path.read_text() for path in root.glob("out/model0-*/*.jsonl"))
    readings = [json.loads(line)["reading"] for line in text.splitlines()]
    assert sorted(one["image_size"] for one in readings) == [32, 64, 64, 64, 64, 96]
    assert sorted(one["context_length"] for one in readings) == [20, 77, 77, 77, 77, 77]
    assert len({one["templates"] for one in readings}) == 2
    assert {one["precision"] for one in readings} == {"float32", "bfloat16"}


def test_what_fails_is_named_and_stops_nothing(root, capsys):
    (root / FOLDERS[PETS] / "test" / "1.tar").unlink()
    torn = root / "torn.pt"
    torn.write_bytes(b"torn")
    done = evaluate_models([model_of(root), str(torn)], spec_of(root))
    assert [(one.model, one.task) for one in done.failures] == [("model0", "Oxford-IIIT Pet"), (str(torn), "")]
    assert "1.tar" in done.failures[0].message
    assert list(done.models[0].results) == [FLICKR]
    allowed = run_of(root, datasets=(PETS,), allow_missing=True).models[0].results[PETS]
    assert (allowed.num_images, allowed.left_out) == (COUNT - 10, {"missing_shard": 1})
    chosen = ("--data", root, "--output", root / "out", "--datasets", PETS, "--datasets", FLICKR)
    status, out, err = command(capsys, "eval", model_of(root), *chosen)
    assert (status, "Flickr" in out, "not evaluated: model0 on Oxford-IIIT Pet" in err) == (1, True, True)


def test_data_sets_of_a_web_server(root):
    with web_server() as site:
        paths = (root / FOLDERS[PETS]).rglob("*.*")
        site.files |= {f"/{path.relative_to(root)}": path.read_bytes() for path in paths}
        spec = EvaluationSpec(data=f"{site.url}/wds_{{name}}_test", output=root / "far", datasets=(PETS,))
        far = evaluate_models([model_of(root)], spec, console=Console(file=(said := io.StringIO()), width=200))
        spec = attrs.evolve(spec, output=root / "limited", stores=storage.StoreLimits(max_bytes=3))
        limited = evaluate_models([model_of(root)], spec)
    assert [failure.task for failure in limited.failures] == ["Oxford-IIIT Pet"]
    assert "more than" in limited.failures[0].message
    assert storage.store_limits() == storage.StoreLimits(), "for this run alone"
    record = far.models[0].results[PETS]
    assert record.metrics == metrics_of(root, FOLDERS[PETS])
    low, high = (100 * end for end in attrs.astuple(record.interval))
    assert f"{100 * record.main_metric:.2f} % ({low:.1f} to {high:.1f}) of {COUNT}" in said.getvalue()


def test_the_recipe_can_be_quiet(root, capsys):
    line = [model_of(root), "--data", str(root), "--datasets", PETS, "--output", str(root / "out")]
    for flags, is_told in (((), True), (("--quiet",), False), (("--no-quiet",), True)):
        run_recipe(EvaluationSpec(), [*line, *flags])
        assert ("[1/1] model0 on" in (said := capsys.readouterr()).err) == is_told
        assert is_told or (said.err == "" and "Pet" in said.out)


def test_a_run_that_is_killed_goes_on(root):
    """The process dies in the second data set; the first one's line and embeddings are whole."""
    script = f"""
import os, sys
from pathlib import Path
from mobileclip.encoders import DualEncoder
from mobileclip.evaluation import EvaluationSpec, evaluate_models
real, seen, root = DualEncoder.encode_image, [], Path(sys.argv[1])
def dying(self, batch, normalize=False):
    seen.extend(batch)
    if len(seen) > {COUNT}:
        os.kill(os.getpid(), 9)
    return real(self, batch, normalize)
DualEncoder.encode_image = dying
spec = EvaluationSpec(data=str(root), output=root / "out", datasets={tuple(FOLDERS)})
evaluate_models([str(root / "model0.safetensors")], spec)
"""
    killed = preloaded().call("tests.preloaded:python", "-c", script, str(root), folder=root, seconds=120)
    assert killed.status == -9, killed.output
    (path,) = (root / "out").glob("model0-*/results.jsonl")
    before = read_results(path)
    assert list(before) == [PETS]
    after = run_of(root).models[0].results
    assert (after[PETS], len(after)) == (before[PETS], 2)


def test_what_cannot_be_evaluated_is_refused_before_the_work(root):
    for key, words in {"vtab/cats": ["vtab/cats"], "vtab/dtd": ["vtab/dtd", "wds_vtab-dtd_test"]}.items():
        with fails(ValueError, *words):
            run_of(root, datasets=(key,))
    for filters in (("nearest",), ("bicubic", "bicubic")):
        with fails(ValueError, "interpolation"):
            run_of(root, interpolation=filters)


def test_records_that_are_written_side_by_side_are_all_kept(tmp_path):
    """By processes that share a file; each adds to what the others have written."""
    path = tmp_path / "model" / "results.jsonl"
    script = """
import sys
from pathlib import Path
from mobileclip.evaluation import DatasetResult, add_result
for number in range(30):
    key = f"{sys.argv[2]}/{number}"
    about = {"metrics": {"main_metric": number / 30}, "evaluated": {"weights_sha256": "x"}}
    add_result(Path(sys.argv[1]), DatasetResult(key=key, dataset=key, **about), model="x")
"""
    processes = [preloaded().start("-c", script, path, name, folder=tmp_path) for name in ("one", "two")]
    assert [process.communicate(120) and process.returncode for process in processes] == [0] * 2
    results = read_results(path)
    assert (len(results), results["two/15"].main_metric) == (60, 0.5)


def test_open_clip_beside_ours(root):
    """Its accuracy is that of open_clip's own functions, one image after another."""
    import open_clip

    tiny = write_tiny_models(root / "tiny").teachers[0]
    name = f"open_clip:{tiny.model}={tiny.pretrained}"
    done = evaluate_models([name, model_of(root)], spec_of(root))
    assert (done.failures, [len(model.results) for model in done.models]) == ((), [2, 2])
    candidate = open_candidate(name)
    assert candidate.name == "open_clip:tiny_vit=tiny_vit"
    theirs = load_open_clip(OpenClipSource(model=tiny.model, pretrained=tiny.pretrained)).model
    transform = ImageTransform(candidate.clip.image_input)
    samples = evaluation.open_benchmark(root / FOLDERS[PETS]).samples(SkipReport())
    with torch.no_grad():
        prompts = open_clip.tokenize([text.format(name) for name in SHAPES for text in TEMPLATES])
        texts = theirs.encode_text(prompts, normalize=True).reshape(len(SHAPES), len(TEMPLATES), -1)
        classes = torch.nn.functional.normalize(texts.mean(1), dim=-1)
        shown = [(transform(decode_image(one.image))[None], one.label) for one in samples]
        right = [int((theirs.encode_image(image) @ classes.T).argmax()) == label for image, label in shown]
    assert done.models[0].results[PETS].metrics["acc1"] == pytest.approx(sum(right) / COUNT)


def test_fingerprint_and_latency_of_a_candidate(root):
    one, same, other = (open_candidate(model_of(root, number)) for number in (0, 0, 1))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert open_candidate(model_of(root), precision="bfloat16").fingerprint != one.fingerprint
    latency, threads = measure_latency(one.clip), torch.get_num_threads()
    assert (latency.source, 0 < latency.image_ms < 10_000) == ("measured", True)
    assert latency.device.endswith(f"{threads} thread{'s' if threads > 1 else ''}, float32, batch of 1")


def test_a_batch_takes_half_of_what_is_free(root):
    assert [fitting(free, 10, most=64) for free in (1000, 1280, 10**9, 1, None)] == [32, 64, 64, 1, 64]

    def available():
        (line,) = (one for one in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in one)
        return 1024 * int(line.split()[1])

    before, free, after = available(), free_memory(), available()
    assert min(before, after) - 2**26 <= free <= max(before, after) + 2**26, "caches count as free"
    assert evaluation.Session.of(open_candidate(model_of(root))).batch_size in {2**power for power in range(7)}


def test_suites_and_their_folders():
    assert len(evaluation.SUITES["full"]) == 38
    quick = evaluation.suite_tasks("quick")
    assert quick[0].path == "https://huggingface.co/datasets/djghosh/wds_vtab-pets_test/tree/main"
    with fails(ValueError, "slow"):
        evaluation.suite_tasks("slow")
    for entry in SUITE:
        assert evaluation.suite_entry(entry.key.replace("/", "-")) == entry
        if entry.key != "misc/winogavil":  # which is in a folder of its own
            folder = find_task(entry.key).path.removesuffix("/tree/main").rpartition("/")[2]
            assert evaluation.suite_entry(folder.removeprefix("wds_").removesuffix("_test")) == entry


def test_where_data_are(root):
    assert [find_task(key, str(root)).path for key in FOLDERS] == [str(root / one) for one in FOLDERS.values()]
    assert find_task(str(root / FOLDERS[PETS])).key == PETS
    assert find_task("vtab/dtd", "s3://bucket/wds_{name}").path == "s3://bucket/wds_vtab-dtd"
    own = str(shutil.copytree(root / FOLDERS[PETS], root / "wds_mine_test"))
    found = find_task(own)
    assert (found.key, found.name, found.path) == ("mine", "mine", own)
    for key, data in (("aro/vg_relation", None), ("misc/winogavil", str(root))):
        with fails(ValueError, key.rpartition("/")[2]):
            find_task(key, data)


def test_a_broken_picture_is_counted_and_a_failure_where_that_is_asked_for(root, tmp_path, capsys):
    """One breaks off, one is of another kind, and one is a line of pixels, which a small input has room for."""
    odd, out = tmp_path / "odd", ("--output", tmp_path / "out")
    pictures = {f"{name}/whole.png": encoded(40, 30, seed=len(name)) for name in ("cat", "dogs")}
    pictures |= {"dogs/cut.png": encoded(40, 30, seed=9)[:60], "dogs/text.jpg": b"no picture"}
    write(odd, {**pictures, "cat/line.png": encoded(1, 2500, seed=9)})
    tiny = write_tiny_models(root / "tiny").teachers[0]
    given = ("eval", model_of(root), odd, "--image-size", 256, *out)
    for arguments in (given, ("eval", f"open_clip:{tiny.model}={tiny.pretrained}", odd, *out)):
        assert command(capsys, *arguments)[0] == 0
    lines = [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("out/*/results.jsonl")]
    reasons = {"image_truncated": 1, "image_not_an_image": 1}
    found = sorted((line["num_images"], line["left_out"]) for line in lines)
    assert found == [(2, {**reasons, "image_extreme_shape": 1}), (3, reasons)]
    assert command(capsys, *given, "--strict")[0] == 1


def test_a_table_and_a_report_of_two_models(root, capsys):
    options = ("--data", root, "--output", root / "out", "--datasets", PETS, "--datasets", f"probe:{PETS}")
    options += ("--report", "--compare-published", "mobileclip_s1")
    status, out, err = command(capsys, "eval", model_of(root, 0), model_of(root, 1), *options)
    assert status == 0
    rows = [line.split() for line in out.splitlines() if line.strip().startswith("Oxford-IIIT")]
    numbers = [[cell for cell in row if cell.replace(".", "").isdigit()][:2] for row in rows]
    results = [read_results(path)[PETS].main_metric for path in sorted(root.glob("out/model*/*.jsonl"))]
    assert [f"{100 * value:.1f}" for value in results] in numbers
    assert out.index("model1 against model0") < out.index("All results"), "the verdict comes first"
    assert "[1/2] model1 on Oxford-IIIT Pet" in err
    (plot,) = (root / "out" / "plots").glob("*.png")
    assert plot.name == Path(out.split("plot: ")[1]).name.strip()
    page = (root / "out" / "report.html").read_text(encoding="utf-8")
    told(page, "model1 against model0", "Oxford-IIIT Pet, linear probe", "mobileclip_s1")
    assert "average of 38" not in page, "no suite was evaluated"


# Beside the last two, of 21,100 and 15,000 images, they have 10,000.
KEYS = ("vtab/cifar100", "cifar10", "mnist", "imagenetv2", "country211", "vtab/clevr_count_all")
LEFT = [
    (100, (), ["", "", "", "", ", about 6:01 left", ", about 2:30 left"]),
    (100, ("ours",), ["", "", "", "", ", at least 6:01 left", ", at least 2:30 left", ""]),
    (0.5, (), [""] * 6),
]


@pytest.mark.parametrize(("seconds", "others", "expected"), LEFT, ids=["known", "one unknown", "first seconds"])
def test_time_left_goes_with_the_images_that_are_encoded_here(root, monkeypatch, seconds, others, expected):
    for folder in ("ours", *(f"wds_{key.replace('/', '-')}_test" for key in KEYS)):
        shutil.copytree(root / FOLDERS[PETS], root / folder)
    monkeypatch.setitem(evaluate_models.__globals__, "time", SimpleNamespace(monotonic=count(0, seconds).__next__))
    spec = spec_of(root, datasets=(*KEYS, *(str(root / one) for one in others)))
    for shown in (expected, [""] * len(expected)):  # the second time, all of it is kept
        console = Console(file=(said := io.StringIO()), width=200)
        assert evaluate_models([model_of(root)], spec, console=console).failures == ()
        titles = [line for line in said.getvalue().splitlines() if line.startswith("[")]
        assert [", ".join(["", *line.split(", ")[1:]]) for line in titles] == shown
