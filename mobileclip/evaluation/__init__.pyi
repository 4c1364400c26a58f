from .cache import FeatureCache as FeatureCache
from .candidates import Candidate as Candidate, candidate_of as candidate_of, open_candidate as open_candidate
from .classifier import (
    ClassifierEvaluation as ClassifierEvaluation,
    classifier_hook as classifier_hook,
    evaluate_classifier as evaluate_classifier,
)
from .comparison import ComparisonRow as ComparisonRow, compare_results as compare_results
from .datasets.benchmark import (
    Benchmark as Benchmark,
    BenchmarkSample as BenchmarkSample,
    open_benchmark as open_benchmark,
)
from .datasets.benchmark_writer import write_benchmark as write_benchmark
from .encoding.features import Features as Features
from .hook import evaluation_hook as evaluation_hook
from .metrics.classification import (
    ClassificationResult as ClassificationResult,
    classification_accuracy as classification_accuracy,
)
from .metrics.groups import (
    GroupAccuracy as GroupAccuracy,
    association_score as association_score,
    group_accuracy as group_accuracy,
    macro_f1 as macro_f1,
)
from .metrics.intervals import (
    Interval as Interval,
    PairedDifference as PairedDifference,
    paired_difference as paired_difference,
    proportion_interval as proportion_interval,
)
from .metrics.retrieval import (
    Recall as Recall,
    RetrievalResult as RetrievalResult,
    caption_recall as caption_recall,
    retrieval_recall as retrieval_recall,
)
from .published import (
    published_models as published_models,
    published_results as published_results,
    published_with as published_with,
)
from .records import Record as Record, add_record as add_record
from .results import (
    DatasetResult as DatasetResult,
    read_results as read_results,
    suite_average as suite_average,
    write_results as write_results,
)
from .runner import (
    Failure as Failure,
    ModelRun as ModelRun,
    Run as Run,
    evaluate_models as evaluate_models,
)
from .session import Session as Session
from .spec import EvaluationSpec as EvaluationSpec
from .suite import SUITE as SUITE, SuiteEntry as SuiteEntry, suite_entry as suite_entry
from .summary import summarize as summarize, write_summary as write_summary
from .tasks.catalogue import SUITES as SUITES, find_task as find_task, suite_tasks as suite_tasks
from .tasks.task import (
    Evaluation as Evaluation,
    FoundTask as FoundTask,
    Task as Task,
    TaskEntry as TaskEntry,
    TaskOptions as TaskOptions,
    evaluation_tasks as evaluation_tasks,
)
from .tasks.zero_shot.evaluate import evaluate_benchmark as evaluate_benchmark
from .tasks.zero_shot.scoring import score as score
