"""How good a model is on data that it has not been trained on."""

from mobileclip.evaluation.cache import FeatureCache
from mobileclip.evaluation.candidates import Candidate, candidate_of, open_candidate
from mobileclip.evaluation.classifier import ClassifierEvaluation, classifier_hook, evaluate_classifier
from mobileclip.evaluation.comparison import ComparisonRow, compare_results
from mobileclip.evaluation.datasets.benchmark import Benchmark, BenchmarkSample, open_benchmark
from mobileclip.evaluation.datasets.writing import write_benchmark
from mobileclip.evaluation.encoding.embedding import (
    ImageTextModel,
    Tokenize,
    embed_images,
    embed_labelled_images,
    embed_texts,
)
from mobileclip.evaluation.encoding.features import Features, extract_features
from mobileclip.evaluation.hook import evaluation_hook
from mobileclip.evaluation.metrics.classification import (
    ClassificationResult,
    classification_accuracy,
    embed_classes,
    ensemble_prompts,
    zero_shot_classification,
)
from mobileclip.evaluation.metrics.groups import GroupAccuracy, association_score, group_accuracy, macro_f1
from mobileclip.evaluation.metrics.intervals import Interval, PairedDifference, paired_difference, proportion_interval
from mobileclip.evaluation.metrics.retrieval import Recall, RetrievalResult, retrieval, retrieval_recall
from mobileclip.evaluation.published import published_models, published_results
from mobileclip.evaluation.results import DatasetResult, read_results, suite_average, write_results
from mobileclip.evaluation.runner import EvaluationSpec, Failure, ModelRun, Run, evaluate_models
from mobileclip.evaluation.suite import SUITE, SuiteEntry, suite_entry
from mobileclip.evaluation.tasks.catalogue import SUITES, Task, find_task, suite_tasks
from mobileclip.evaluation.tasks.winogavil import WinoGavil, evaluate_winogavil, open_winogavil
from mobileclip.evaluation.tasks.zero_shot.evaluate import Evaluation, evaluate_benchmark
from mobileclip.evaluation.tasks.zero_shot.scoring import Score, score

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
    "GroupAccuracy",
    "ImageTextModel",
    "Interval",
    "ModelRun",
    "PairedDifference",
    "Recall",
    "RetrievalResult",
    "Run",
    "Score",
    "SuiteEntry",
    "Task",
    "Tokenize",
    "WinoGavil",
    "association_score",
    "candidate_of",
    "classification_accuracy",
    "classifier_hook",
    "compare_results",
    "embed_classes",
    "embed_images",
    "embed_labelled_images",
    "embed_texts",
    "ensemble_prompts",
    "evaluate_benchmark",
    "evaluate_classifier",
    "evaluate_models",
    "evaluate_winogavil",
    "evaluation_hook",
    "extract_features",
    "find_task",
    "group_accuracy",
    "macro_f1",
    "open_benchmark",
    "open_candidate",
    "open_winogavil",
    "paired_difference",
    "proportion_interval",
    "published_models",
    "published_results",
    "read_results",
    "retrieval",
    "retrieval_recall",
    "score",
    "suite_average",
    "suite_entry",
    "suite_tasks",
    "write_benchmark",
    "write_results",
    "zero_shot_classification",
]
