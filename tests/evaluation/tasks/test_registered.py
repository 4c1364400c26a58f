"""Every registered task has a name of its own, finds its data or says where they are, and refuses empty folders."""

import pytest

from mobileclip.evaluation import SUITES, TaskOptions, evaluation_tasks, find_task, published_models, published_results
from mobileclip.evaluation.tasks.catalogue import NOT_EVALUATED
from tests.errors import fails

# Those of captions have names of their own on the hub.
CAPTIONS = {
    "retrieval/flickr_1k_test_image_text_retrieval": "clip-benchmark/wds_flickr30k",
    "retrieval/mscoco_2014_5k_test_image_text_retrieval": "clip-benchmark/wds_mscoco_captions",
}
# Whose data lie in folders of their own.
BESIDE = ("aro/", "comp/", "longclip/", "misc/winogavil", "multilingual/")


def test_every_published_figure_has_its_task_and_each_its_name():
    published = {key for model in published_models() for key in published_results(model)}
    assert published <= set(evaluation_tasks)
    assert set(SUITES["sugarcrepe"]) <= set(published_results("mobileclip2_s0"))
    assert len({evaluation_tasks[key].name for key in evaluation_tasks}) == len(evaluation_tasks)


@pytest.mark.parametrize("key", ["fairness/fairface", "fairness/utkface", "longclip/sharegpt4v-llava15k"])
def test_a_published_data_set_without_a_task_says_why(key):
    assert key not in evaluation_tasks
    with fails(ValueError, key, NOT_EVALUATED[key]):
        find_task(key)


@pytest.mark.parametrize("key", sorted(evaluation_tasks))
def test_it_is_on_the_hub_or_says_where_and_an_empty_folder_is_refused_before_any_work(key, tmp_path):
    with fails(ValueError, str(tmp_path)):
        find_task(key, str(tmp_path))
    if not key.startswith(BESIDE):
        found = find_task(key)
        assert (found.key, found.name) == (key, evaluation_tasks[key].name)
        name = CAPTIONS.get(key, f"djghosh/wds_{key.removeprefix('fairness/').replace('/', '-')}_test")
        assert found.path == f"https://huggingface.co/datasets/{name}/tree/main"
        return
    with fails(ValueError, "request the data at" if key == "comp/winoground" else ""):
        find_task(key)
    for folder in ("aro", "winogavil", "sugarcrepe", "winoground", "urban1k", "sharegpt4v", "xtd10", "xm3600"):
        (tmp_path / folder).mkdir()
    with fails(ValueError, str(tmp_path)):
        find_task(key, str(tmp_path)).open(TaskOptions())
