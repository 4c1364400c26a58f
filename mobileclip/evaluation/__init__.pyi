from .candidates import Candidate as Candidate, candidate_of as candidate_of, open_candidate as open_candidate
from .data import (
    Benchmark as Benchmark,
    BenchmarkSample as BenchmarkSample,
    open_benchmark as open_benchmark,
)
from .features import FeatureCache as FeatureCache, Features as Features, Session as Session
from .hook import (
    ClassifierEvaluation as ClassifierEvaluation,
    classifier_hook as classifier_hook,
    evaluate_classifier as evaluate_classifier,
    evaluation_hook as evaluation_hook,
)
from .intervals import (
    Interval as Interval,
    PairedDifference as PairedDifference,
    paired_difference as paired_difference,
    proportion_interval as proportion_interval,
)
from .metrics import (
    ClassificationResult as ClassificationResult,
    GroupAccuracy as GroupAccuracy,
    Recall as Recall,
    RetrievalResult as RetrievalResult,
    association_score as association_score,
    classification_accuracy as classification_accuracy,
    group_accuracy as group_accuracy,
    macro_f1 as macro_f1,
    rank as rank,
    rank_captions as rank_captions,
)
from .results import (
    DatasetResult as DatasetResult,
    Difference as Difference,
    Latency as Latency,
    ModelResults as ModelResults,
    Predictions as Predictions,
    add_result as add_result,
    compare_results as compare_results,
    differences as differences,
    published_model as published_model,
    published_models as published_models,
    published_results as published_results,
    published_with as published_with,
    read_results as read_results,
    suite_average as suite_average,
    write_results as write_results,
)
from .run import (
    Failure as Failure,
    Run as Run,
    evaluate_models as evaluate_models,
    summarize as summarize,
    write_summary as write_summary,
)
from .spec import EvaluationSpec as EvaluationSpec, TaskOptions as TaskOptions
from .suite import SUITE as SUITE, SuiteEntry as SuiteEntry, suite_entry as suite_entry
from .tasks.catalogue import SUITES as SUITES, find_task as find_task, suite_tasks as suite_tasks
from .tasks.task import (
    FoundTask as FoundTask,
    Task as Task,
    TaskEntry as TaskEntry,
    evaluation_tasks as evaluation_tasks,
)
from .tasks.zero_shot import evaluate_benchmark as evaluate_benchmark, score as score
