"""Whole runs: models from files and of open_clip on data sets of drawn scenes, resumed and broken."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import attrs
import pytest
import torch
from PIL import Image
from rich.console import Console

from mobileclip import storage
from mobileclip.data import ImageTransform, SkipReport
from mobileclip.evaluation import (
    SUITE,
    SUITES,
    EvaluationSpec,
    Session,
    SuiteEntry,
    evaluate_benchmark,
    evaluate_models,
    find_task,
    open_benchmark,
    open_candidate,
    read_results,
    suite_entry,
    suite_tasks,
    summarize,
)
from mobileclip.evaluation.features import fitting, free_memory, measure_latency
from mobileclip.evaluation.tasks.zero_shot import ZeroShotTask
from mobileclip.interop import OpenClipSource, load_open_clip
from mobileclip.recipes import run_recipe
from mobileclip.recipes.tiny import SHAPES
from tests.build.commands import run as command
from tests.data.made_samples import encoded
from tests.errors import fails
from tests.evaluation.conftest import COUNT, TEMPLATES
from tests.preloaded import preloaded
from tests.reinforce.open_clip_models import write_tiny_models
from tests.stores import web_server


def spec_of(root, **choices):
    choices = {"datasets": ("vtab/pets", "retrieval/flickr_1k_test_image_text_retrieval"), **choices}
    return EvaluationSpec(data=str(root), output=root / "out", **choices)


def model_of(root):
    return str(root / "model0.safetensors")


def run_of(root, **choices):
    """Evaluate the first model."""
    return evaluate_models([model_of(root)], spec_of(root, **choices))


def counting(monkeypatch):
    """Count the images and texts that any model of ours encodes."""
    from mobileclip.encoders import DualEncoder

    counted = {"images": 0, "texts": 0}
    encode_image, encode_text = DualEncoder.encode_image, DualEncoder.encode_text

    def image(self, batch, normalize=False):
        counted["images"] += len(batch)
        return encode_image(self, batch, normalize)

    def text(self, tokens, normalize=False):
        counted["texts"] += len(tokens)
        return encode_text(self, tokens, normalize)

    monkeypatch.setattr(DualEncoder, "encode_image", image)
    monkeypatch.setattr(DualEncoder, "encode_text", text)
    return counted


class TestRun:
    def test_the_numbers_are_those_of_one_data_set_after_another(self, root):
        done = evaluate_models([model_of(root), str(root / "model1.safetensors")], spec_of(root))
        assert done.failures == ()
        assert [model.name for model in done.models] == ["model0", "model1"]
        for model in done.models:
            candidate = open_candidate(str(root / f"{model.name}.safetensors"))
            for key, folder in (("vtab/pets", "wds_vtab-pets_test"), (SUITE[30].key, "wds_flickr30k")):
                alone = evaluate_benchmark(Session.of(candidate, show_progress=False), open_benchmark(root / folder))
                assert model.results[key].metrics == pytest.approx(alone.metrics, abs=1e-6)
                assert model.results[key].num_images == COUNT
            assert read_results(model.path).keys() == {"vtab/pets", SUITE[30].key}
            assert candidate.weights_sha256[:8] in str(model.path)
        first, second = (model.results["vtab/pets"].main_metric for model in done.models)
        assert first != second

    def test_nothing_is_encoded_twice(self, root, monkeypatch):
        counted = counting(monkeypatch)
        model = model_of(root)
        first = evaluate_models([model], spec_of(root))
        assert counted["images"] == 2 * COUNT
        counted.update(images=0, texts=0)
        again = evaluate_models([model], spec_of(root))
        assert counted == {"images": 0, "texts": 0}
        assert again.models[0].results == first.models[0].results

        # Another metric, or a report, needs the embeddings and no images.
        shutil.rmtree(first.models[0].path.parent)
        anew = evaluate_models([model], spec_of(root))
        assert counted == {"images": 0, "texts": 0}
        for key, record in anew.models[0].results.items():
            assert record == first.models[0].results[key]

        # Other prompts need their texts alone.
        (root / "wds_vtab-pets_test" / "zeroshot_classification_templates.txt").write_text("{c}!")
        evaluate_models([model], spec_of(root))
        assert counted == {"images": 0, "texts": len(SHAPES)}

    def test_both_filters_stand_side_by_side_and_are_not_mixed_up(self, root, monkeypatch):
        file, filters = model_of(root), ("bilinear", "bicubic")
        counted = counting(monkeypatch)
        spec = spec_of(root, datasets=("vtab/pets",), interpolation=filters)
        done = evaluate_models([file], spec)
        assert [model.name for model in done.models] == ["model0 (bilinear)", "model0 (bicubic)"]
        assert counted["images"] == 2 * COUNT
        benchmark = open_benchmark(root / "wds_vtab-pets_test")
        for model, interpolation in zip(done.models, filters, strict=True):
            candidate, record = open_candidate(file, interpolation=interpolation), model.results["vtab/pets"]
            assert record.evaluated["model"] == candidate.fingerprint
            alone = evaluate_benchmark(Session.of(candidate, show_progress=False), benchmark)
            assert record.metrics == pytest.approx(alone.metrics, abs=1e-6)
            assert read_results(model.path) == {"vtab/pets": record}
        assert open_candidate(file).fingerprint == done.models[0].results["vtab/pets"].evaluated["model"]

        counted.update(images=0)
        again = evaluate_models([file], attrs.evolve(spec, interpolation=("bicubic",)))
        assert counted["images"] == 0
        assert again.models[0].results == done.models[1].results

    def test_a_text_of_several_data_sets_is_encoded_once(self, root, monkeypatch):
        shutil.copytree(root / "wds_vtab-pets_test", root / "wds_vtab-dtd_test")
        templates = root / "wds_vtab-dtd_test" / "zeroshot_classification_templates.txt"
        templates.write_text(f"{templates.read_text().splitlines()[0]}\n{{c}}?")
        counted = counting(monkeypatch)
        both = run_of(root, datasets=("vtab/pets", "vtab/dtd"))
        assert counted["texts"] == 3 * len(SHAPES), "two templates, and one that the other data set has not"
        candidate = open_candidate(model_of(root))
        alone = evaluate_benchmark(
            Session.of(candidate, show_progress=False), open_benchmark(root / "wds_vtab-dtd_test")
        )
        assert both.models[0].results["vtab/dtd"].metrics == pytest.approx(alone.metrics, abs=1e-6)

    def test_other_weights_are_evaluated_again(self, root, monkeypatch):
        model = root / "model0.safetensors"
        first = evaluate_models([str(model)], spec_of(root)).models[0]
        counted = counting(monkeypatch)
        shutil.copy(root / "model1.safetensors", model)
        second = evaluate_models([str(model)], spec_of(root)).models[0]
        assert counted["images"] == 2 * COUNT
        assert first.path != second.path

    def test_without_the_cache_results_are_kept_and_embeddings_are_not(self, root, monkeypatch):
        counted = counting(monkeypatch)
        model = model_of(root)
        done = evaluate_models([model], spec_of(root, cache=False)).models[0]
        assert not (root / "out" / "features").exists()
        assert len(read_results(done.path)) == 2
        counted.update(images=0)
        evaluate_models([model], spec_of(root, cache=False))
        assert counted["images"] == 2 * COUNT, "no number is believed"

    def test_a_changed_metric_shows_without_encoding(self, root, monkeypatch):
        """The metric of one data set counts otherwise: no picture or text is encoded, and every number is the new."""
        model, spec = model_of(root), spec_of(root, datasets=("vtab/pets",))
        before = evaluate_models([model], spec).models[0]
        counted = counting(monkeypatch)
        scored = ZeroShotTask.score

        def halved(self, features):
            evaluation = scored(self, features)
            return attrs.evolve(evaluation, metrics={name: value / 2 for name, value in evaluation.metrics.items()})

        monkeypatch.setattr(ZeroShotTask, "score", halved)
        (after,) = evaluate_models([model], spec).models
        assert counted == {"images": 0, "texts": 0}
        half = before.results["vtab/pets"].main_metric / 2
        assert after.results["vtab/pets"].main_metric == pytest.approx(half)
        assert read_results(after.path)["vtab/pets"] == after.results["vtab/pets"]
        assert len(after.path.read_text().splitlines()) == 1

    def test_sizes_filters_and_templates_stand_side_by_side(self, root):
        model, spec = model_of(root), spec_of(root, datasets=("vtab/pets",))
        others = ({"image_size": 32}, {"image_size": 96}, {"context_length": 20}, {"precision": "bfloat16"})
        for choices in ({}, *others, {}):
            evaluate_models([model], attrs.evolve(spec, **choices))
        (root / "wds_vtab-pets_test" / "zeroshot_classification_templates.txt").write_text("{c}!")
        evaluate_models([model], spec)
        lines = [
            json.loads(line) for path in root.glob("out/model0-*/*.jsonl") for line in path.read_text().splitlines()
        ]
        assert len(lines) == 6
        readings = [line["reading"] for line in lines]
        assert sorted(one["image_size"] for one in readings) == [32, 64, 64, 64, 64, 96]
        assert sorted(one["context_length"] for one in readings) == [20, 77, 77, 77, 77, 77]
        assert len({one["templates"] for one in readings}) == 2
        assert {one["precision"] for one in readings} == {"float32", "bfloat16"}

    def test_what_fails_is_named_and_stops_nothing(self, root):
        (root / "wds_vtab-pets_test" / "test" / "1.tar").unlink()
        (root / "torn.pt").write_bytes(b"torn")
        torn = str(root / "torn.pt")
        done = evaluate_models([model_of(root), torn], spec_of(root))
        assert [(one.model, one.task) for one in done.failures] == [("model0", "Oxford-IIIT Pet"), (torn, "")]
        assert "1.tar" in done.failures[0].message
        assert list(done.models[0].results) == [SUITE[30].key]
        allowed = run_of(root, datasets=("vtab/pets",), allow_missing=True).models[0]
        assert allowed.results["vtab/pets"].num_images == COUNT - 10
        assert allowed.results["vtab/pets"].left_out == {"missing_shard": 1}

    def test_data_sets_of_a_web_server(self, root):
        model = model_of(root)
        near = evaluate_models([model], spec_of(root, datasets=("vtab/pets",)))
        with web_server() as site:
            for path in (root / "wds_vtab-pets_test").rglob("*.*"):
                site.files[f"/{path.relative_to(root)}"] = path.read_bytes()
            spec = EvaluationSpec(data=f"{site.url}/wds_{{name}}_test", output=root / "far", datasets=("vtab/pets",))
            far = evaluate_models([model], spec, console=Console(file=(said := io.StringIO()), width=200))
            limited = attrs.evolve(spec, output=root / "limited", stores=storage.StoreLimits(max_bytes=3))
            run = evaluate_models([model], limited)
        assert [failure.task for failure in run.failures] == ["Oxford-IIIT Pet"]
        assert "more than" in run.failures[0].message
        assert storage.store_limits() == storage.StoreLimits(), "for this run alone"
        assert far.failures == ()
        record = far.models[0].results["vtab/pets"]
        expected = near.models[0].results["vtab/pets"]
        assert attrs.evolve(record, evaluated={}) == attrs.evolve(expected, evaluated={})
        low, high = (100 * end for end in attrs.astuple(record.interval))
        assert f"{100 * record.main_metric:.2f} % ({low:.1f} to {high:.1f}) of {COUNT}" in said.getvalue()

    def test_the_recipe_can_be_quiet(self, root, capsys):
        line = [model_of(root), "--data", str(root), "--datasets", "vtab/pets", "--output", str(root / "out")]
        for flags, is_told in (((), True), (("--quiet",), False), (("--no-quiet",), True)):
            run_recipe(EvaluationSpec(), [*line, *flags])
            assert ("[1/1] model0 on" in (said := capsys.readouterr()).err) == is_told
            assert is_told or (said.err == "" and "Pet" in said.out)

    def test_a_run_that_is_killed_goes_on(self, root):
        """The process dies in the second data set; the first one's line and embeddings are whole."""
        script = f"""
import os
from mobileclip.encoders import DualEncoder
from mobileclip.evaluation import EvaluationSpec, evaluate_models
real, seen = DualEncoder.encode_image, []
def dying(self, batch, normalize=False):
    seen.extend(batch)
    if len(seen) > {COUNT}:
        os.kill(os.getpid(), 9)
    return real(self, batch, normalize)
DualEncoder.encode_image = dying
from pathlib import Path
spec = EvaluationSpec(data={str(root)!r}, output=Path({str(root / "out")!r}),
    datasets=("vtab/pets", {SUITE[30].key!r}))
evaluate_models([{model_of(root)!r}], spec)
"""
        killed = preloaded().call("tests.preloaded:python", "-c", script, folder=root, seconds=120)
        assert killed.status == -9, killed.output
        (path,) = (root / "out").glob("model0-*/results.jsonl")
        before = read_results(path)
        assert list(before) == ["vtab/pets"]
        after = run_of(root).models[0].results
        assert after["vtab/pets"] == before["vtab/pets"]
        assert len(after) == 2

    @pytest.mark.parametrize(
        ("choices", "words"),
        [
            ({"datasets": ("vtab/cats",)}, ("vtab/cats",)),
            ({"datasets": ("vtab/dtd",)}, ("vtab/dtd", "wds_vtab-dtd_test")),
            ({"interpolation": ("nearest",)}, ("interpolation",)),
            ({"interpolation": ("bicubic", "bicubic")}, ("interpolation",)),
        ],
    )
    def test_what_cannot_be_evaluated_is_refused_before_the_work(self, root, choices, words):
        with fails(ValueError, *words):
            run_of(root, **choices)


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
    assert len(results) == 60
    assert results["two/15"].main_metric == 0.5


class TestCandidates:
    def test_open_clip_beside_ours(self, root):
        tiny = write_tiny_models(root / "tiny").teachers[0]
        name = f"open_clip:{tiny.model}={tiny.pretrained}"
        candidate = open_candidate(name)
        assert candidate.name == "open_clip:tiny_vit=tiny_vit"
        done = evaluate_models([name, model_of(root)], spec_of(root))
        assert done.failures == ()
        assert [len(model.results) for model in done.models] == [2, 2]
        # The same model by open_clip's own functions, one image and text after another.
        import open_clip

        right, benchmark = [], open_benchmark(root / "wds_vtab-pets_test")
        theirs = load_open_clip(OpenClipSource(model=tiny.model, pretrained=tiny.pretrained)).model
        transform = ImageTransform(candidate.clip.image_input)
        with torch.no_grad():
            prompts = open_clip.tokenize([text.format(name) for name in SHAPES for text in TEMPLATES])
            texts = theirs.encode_text(prompts, normalize=True).reshape(len(SHAPES), len(TEMPLATES), -1)
            classes = torch.nn.functional.normalize(texts.mean(1), dim=-1)
            for sample in benchmark.samples(SkipReport()):
                picture = Image.open(io.BytesIO(sample.image)).convert("RGB")
                image = theirs.encode_image(transform(picture)[None], normalize=True)
                right.append(int((image @ classes.T).argmax()) == sample.label)
        assert done.models[0].results["vtab/pets"].metrics["acc1"] == pytest.approx(sum(right) / COUNT)

    def test_fingerprint(self, root):
        one, same, other = (open_candidate(str(root / f"model{number}.safetensors")) for number in (0, 0, 1))
        assert one.fingerprint == same.fingerprint != other.fingerprint
        reduced = open_candidate(model_of(root), precision="bfloat16")
        assert reduced.fingerprint != one.fingerprint

    def test_latency(self, root):
        candidate = open_candidate(model_of(root))
        latency = measure_latency(candidate.clip)
        assert latency.source == "measured"
        assert 0 < latency.image_ms < 10_000
        count = torch.get_num_threads()
        assert latency.device.endswith(f"{count} thread{'s' if count > 1 else ''}, float32, batch of 1")


@pytest.mark.parametrize(
    ("free", "each", "size"), [(1000, 10, 32), (1280, 10, 64), (10**9, 10, 64), (1, 10, 1), (None, 10, 64)]
)
def test_a_batch_takes_half_of_what_is_free(free, each, size):
    assert fitting(free, each, most=64) == size


class TestBatchSize:
    def test_this_machine(self, root):
        def available():
            (line,) = (one for one in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in one)
            return 1024 * int(line.split()[1])

        before, free, after = available(), free_memory(), available()
        assert min(before, after) - 2**26 <= free <= max(before, after) + 2**26, "caches count as free"
        session = Session.of(open_candidate(model_of(root)))
        assert session.batch_size in {2**power for power in range(7)}


class TestTasks:
    def test_suites(self):
        assert len(SUITES["full"]) == 38
        assert suite_tasks("quick")[0].path == "https://huggingface.co/datasets/djghosh/wds_vtab-pets_test/tree/main"
        with fails(ValueError, "slow"):
            suite_tasks("slow")

    @pytest.mark.parametrize("entry", SUITE, ids=lambda entry: entry.key)
    def test_folders_lead_back(self, entry: SuiteEntry):
        assert suite_entry(entry.key.replace("/", "-")) == entry
        if entry.key != "misc/winogavil":  # which is in a folder of its own
            folder = find_task(entry.key).path.removesuffix("/tree/main").rpartition("/")[2]
            assert suite_entry(folder.removeprefix("wds_").removesuffix("_test")) == entry

    def test_where_data_are(self, root):
        assert find_task("vtab/pets", str(root)).path == str(root / "wds_vtab-pets_test")
        assert find_task(SUITE[30].key, str(root)).path == str(root / "wds_flickr30k")
        assert find_task("vtab/dtd", "s3://bucket/wds_{name}").path == "s3://bucket/wds_vtab-dtd"
        own = root / "wds_mine_test"
        shutil.copytree(root / "wds_vtab-pets_test", own)
        found = find_task(str(own))
        assert (found.key, found.name, found.path) == ("mine", "mine", str(own))
        assert find_task(str(root / "wds_vtab-pets_test")).key == "vtab/pets"
        with fails(ValueError, "aro/vg_relation"):
            find_task("aro/vg_relation")
        with fails(ValueError, "winogavil"):
            find_task("misc/winogavil", str(root))


class TestCommand:
    def test_failures_end_it_with_an_error(self, root, capsys):
        (root / "wds_vtab-pets_test" / "test" / "0.tar").unlink()
        status, out, err = command(
            capsys, "eval", root / "model0.safetensors", "--data", root, "--output", root / "out",
            "--datasets", "vtab/pets", "--datasets", SUITE[30].key,
        )  # fmt: skip
        assert (status, "Flickr" in out, "not evaluated: model0 on Oxford-IIIT Pet" in err) == (1, True, True)

    def test_a_broken_picture_is_counted_and_a_failure_where_that_is_asked_for(self, root, tmp_path, capsys):
        """One breaks off, one is of another kind, and one is a line of pixels, which a small input has room for."""
        for name in ("cat", "dog"):
            (tmp_path / "odd" / name).mkdir(parents=True)
            (tmp_path / "odd" / name / "whole.png").write_bytes(encoded(40, 30, seed=len(name)))
        (tmp_path / "odd" / "dog" / "cut.png").write_bytes(encoded(40, 30, seed=9)[:60])
        (tmp_path / "odd" / "dog" / "text.jpg").write_bytes(b"no picture")
        (tmp_path / "odd" / "cat" / "line.png").write_bytes(encoded(1, 2500, seed=9))
        tiny = write_tiny_models(root / "tiny").teachers[0]
        out = ("--output", tmp_path / "out")
        given = ("eval", root / "model0.safetensors", tmp_path / "odd", "--image-size", 256, *out)
        assert command(capsys, *given)[0] == 0
        theirs = f"open_clip:{tiny.model}={tiny.pretrained}"
        assert command(capsys, "eval", theirs, tmp_path / "odd", *out)[0] == 0
        lines = [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("out/*/results.jsonl")]
        reasons = {"image_truncated": 1, "image_not_an_image": 1}
        found = sorted((line["num_images"], line["left_out"]) for line in lines)
        assert found == [(2, {**reasons, "image_extreme_shape": 1}), (3, reasons)]
        assert command(capsys, *given, "--strict")[0] == 1

    def test_a_table_and_a_report_of_two_models(self, root, capsys):
        status, out, err = command(
            capsys, "eval", root / "model0.safetensors", root / "model1.safetensors", "--data", root, "--output",
            root / "out", "--datasets", "vtab/pets", "--datasets", "probe:vtab/pets", "--report", "--compare-published",
            "mobileclip_s1",
        )  # fmt: skip
        assert status == 0
        rows = [line.split() for line in out.splitlines() if line.strip().startswith("Oxford-IIIT")]
        results = [read_results(path)["vtab/pets"].main_metric for path in sorted(root.glob("out/model*/*.jsonl"))]
        numbers = [[cell for cell in row if cell.replace(".", "").isdigit()] for row in rows]
        assert [f"{100 * value:.1f}" for value in results] in [row[:2] for row in numbers]
        assert out.index("model1 against model0") < out.index("All results"), "the verdict comes first"
        assert "[1/2] model1 on Oxford-IIIT Pet" in err
        page = (root / "out" / "report.html").read_text(encoding="utf-8")
        (plot,) = (root / "out" / "plots").glob("*.png")
        assert plot.name == Path(out.split("plot: ")[1]).name.strip()
        for text in ("model1 against model0", "Oxford-IIIT Pet, linear probe", "mobileclip_s1"):
            assert text in page
        assert "average of 38" not in page, "no suite was evaluated"


def test_a_summary_of_a_model_with_its_published_twin(root):
    done = run_of(root)
    twin = attrs.evolve(done, models=(attrs.evolve(done.models[0], name="mobileclip_s0", reference="mobileclip_s0"),))
    measured, published = summarize(twin)
    assert (measured.name, published.name) == ("mobileclip_s0 (measured)", "mobileclip_s0")
    assert measured.reference == "mobileclip_s0"
