"""How good a model is on data that it has not been trained on.

What asks a model, measures its answers or shows the results belongs here, in the room of its step. What trains or
exports a model does not.
"""

from mobileclip.evaluation.cache import FeatureCache
from mobileclip.evaluation.candidates import Candidate, candidate_of, open_candidate
from mobileclip.evaluation.classifier import ClassifierEvaluation, classifier_hook, evaluate_classifier
from mobileclip.evaluation.comparison import ComparisonRow, compare_results
from mobileclip.evaluation.datasets.benchmark import Benchmark, BenchmarkSample, open_benchmark
from mobileclip.evaluation.datasets.writing import write_benchmark
from mobileclip.evaluation.encoding.embedding import ImageTextModel, Tokenize, Transform
from mobileclip.evaluation.encoding.features import Features
from mobileclip.evaluation.hook import evaluation_hook
from mobileclip.evaluation.metrics.classification import (
    ClassificationResult,
    classification_accuracy,
    ensemble_prompts,
)
from mobileclip.evaluation.metrics.groups import GroupAccuracy, association_score, group_accuracy, macro_f1
from mobileclip.evaluation.metrics.intervals import Interval, PairedDifference, paired_difference, proportion_interval
from mobileclip.evaluation.metrics.retrieval import Recall, RetrievalResult, caption_recall, retrieval_recall
from mobileclip.evaluation.published import published_models, published_results, published_with
from mobileclip.evaluation.records import Record, add_record
from mobileclip.evaluation.results import DatasetResult, read_results, suite_average, write_results
from mobileclip.evaluation.runner import EvaluationSpec, Failure, ModelRun, Run, evaluate_models
from mobileclip.evaluation.session import Session
from mobileclip.evaluation.suite import SUITE, SuiteEntry, suite_entry
from mobileclip.evaluation.summary import summarize, write_summary
from mobileclip.evaluation.tasks.catalogue import SUITES, find_task, suite_tasks
from mobileclip.evaluation.tasks.task import Evaluation, FoundTask, Task, TaskEntry, TaskOptions, evaluation_tasks
from mobileclip.evaluation.tasks.zero_shot.evaluate import evaluate_benchmark
from mobileclip.evaluation.tasks.zero_shot.scoring import score

__all__ = [
    "SUITE",
    "SUITES",
    "Benchmark",
    "BenchmarkSample",
    "Candidate",
    "ClassificationResult",
    "ClassifierEvaluation",
    "ComparisonRow",
    "DatasetResult",
    "Evaluation",
    "EvaluationSpec",
    "Failure",
    "FeatureCache",
    "Features",
    "FoundTask",
    "GroupAccuracy",
    "ImageTextModel",
    "Interval",
    "ModelRun",
    "PairedDifference",
    "Recall",
    "Record",
    "RetrievalResult",
    "Run",
    "Session",
    "SuiteEntry",
    "Task",
    "TaskEntry",
    "TaskOptions",
    "Tokenize",
    "Transform",
    "add_record",
    "association_score",
    "candidate_of",
    "caption_recall",
    "classification_accuracy",
    "classifier_hook",
    "compare_results",
    "ensemble_prompts",
    "evaluate_benchmark",
    "evaluate_classifier",
    "evaluate_models",
    "evaluation_hook",
    "evaluation_tasks",
    "find_task",
    "group_accuracy",
    "macro_f1",
    "open_benchmark",
    "open_candidate",
    "paired_difference",
    "proportion_interval",
    "published_models",
    "published_results",
    "published_with",
    "read_results",
    "retrieval_recall",
    "score",
    "suite_average",
    "suite_entry",
    "suite_tasks",
    "summarize",
    "write_benchmark",
    "write_results",
    "write_summary",
]
