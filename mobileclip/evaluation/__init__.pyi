from .benchmark import (
    Benchmark as Benchmark,
    BenchmarkSample as BenchmarkSample,
    open_benchmark as open_benchmark,
)
from .benchmark_writer import write_benchmark as write_benchmark
from .candidates import Candidate as Candidate, candidate_of as candidate_of, open_candidate as open_candidate
from .classifier import (
    ClassifierEvaluation as ClassifierEvaluation,
    classifier_hook as classifier_hook,
    evaluate_classifier as evaluate_classifier,
)
from .encoding import Features as Features
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
from .results import (
    ComparisonRow as ComparisonRow,
    DatasetResult as DatasetResult,
    compare_results as compare_results,
    read_results as read_results,
    suite_average as suite_average,
    write_results as write_results,
)
from .runner import (
    Failure as Failure,
    ModelRun as ModelRun,
    Record as Record,
    Run as Run,
    add_record as add_record,
    evaluate_models as evaluate_models,
)
from .session import FeatureCache as FeatureCache, Session as Session
from .spec import EvaluationSpec as EvaluationSpec
from .suite import SUITE as SUITE, SuiteEntry as SuiteEntry, suite_entry as suite_entry
from .summary import summarize as summarize, write_summary as write_summary
from .tasks.catalogue import SUITES as SUITES, find_task as find_task, suite_tasks as suite_tasks
from .tasks.scoring import score as score
from .tasks.task import (
    Evaluation as Evaluation,
    FoundTask as FoundTask,
    Task as Task,
    TaskEntry as TaskEntry,
    TaskOptions as TaskOptions,
    evaluation_tasks as evaluation_tasks,
)
from .tasks.zero_shot import evaluate_benchmark as evaluate_benchmark
