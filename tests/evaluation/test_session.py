"""A session: the model is made ready once, texts are encoded once, and tasks of other packages are found by key."""

import sys

from mobileclip.evaluation import EvaluationSpec, Session, candidate_of, evaluate_models, evaluation_tasks, find_task
from mobileclip.reparam import is_folded
from tests.encoders.small import SMALL, randomised
from tests.plugins import find_installed, install

PLUGIN = '''
from mobileclip.data import SkipReport
from mobileclip.evaluation import DatasetResult, Features, Task, TaskEntry
from mobileclip.evaluation.intervals import outcomes_of

class Lengths(Task):
    """How long the embeddings of two texts are."""
    def content(self):
        return "two texts"
    def features(self, session):
        def made(session):
            print("encoding")
            text = session.encode_texts(["a dog", "a cat"])
            return Features(tensors={"text": text}, header={}, report=SkipReport(num_read=2))
        return session.cached_features("lengths", self.content, made)
    def score(self, features):
        about = {"metrics": {"main_metric": 0.5, "first": float(features.text[0].norm())}, "report": features.report}
        about |= {"num_images": 2, "num_skipped": 0, "outcomes": outcomes_of(["a", "b"], [0.0, 1.0])}
        return DatasetResult(key="own/lengths", dataset="Lengths", **about)

ENTRY = TaskEntry(name="Lengths", place=lambda key, data: f"{data}/{key}", opener=lambda found, _: Lengths())
'''


def test_a_model_is_folded_once_and_texts_are_encoded_once():
    model, seen = randomised(SMALL), []
    session = Session.of(candidate_of(model, name="small"), batch_size=4, show_progress=False)
    assert (is_folded(session.clip.model), is_folded(model)) == (True, False)
    session.clip.model.text_encoder.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    both = session.encode_texts(["a dog", "a cat", "a dog"])
    assert (both[0] == both[2]).all()
    session.encode_texts(["a cat"])
    assert sum(seen) == 2


def test_a_package_brings_a_task(tmp_path, monkeypatch, capsys):
    install(tmp_path, "plugin_of_lengths", evaluation_tasks.kind, "own/lengths", PLUGIN, attribute="ENTRY")
    monkeypatch.syspath_prepend(tmp_path)
    find_installed(evaluation_tasks, monkeypatch)
    assert find_task("own/lengths", "data").path == "data/own/lengths"
    spec = EvaluationSpec(datasets=("own/lengths",), data=str(tmp_path), output=tmp_path / "out", batch_size=4)
    records = []
    for said in ("encoding\n", ""):  # the second time, its features are kept
        run = evaluate_models([candidate_of(randomised(SMALL), name="small")], spec)
        assert (run.failures, capsys.readouterr().out) == ((), said)
        records.append(run.models[0].results["own/lengths"])
    assert records[0] == records[1]
    assert records[0].metrics["first"] > 0
    sys.modules.pop("plugin_of_lengths")
