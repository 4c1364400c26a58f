"""One model on one data set in a page: its worst classes, and examples of what it finds."""

from __future__ import annotations

from mobileclip.evaluation.report.confusion import ConfusedClass
from mobileclip.evaluation.report.details import DatasetDetails
from mobileclip.evaluation.report.examples import FoundImage, ImageQuery, TextQuery
from mobileclip.evaluation.report.inline import tile
from mobileclip.evaluation.report.markup import Markup, element, join
from mobileclip.evaluation.report.sheets import RIGHT, WRONG, mistakes, similarity_text

_MOST_ABSENT = 10


def details_html(details: DatasetDetails) -> Markup:
    """Return what is known of a model on a data set, to be folded away."""
    counts = f"{details.num_images:,} images"
    counts += f", {details.num_classes:,} classes" if details.num_classes else ""
    summary = element(
        "summary",
        f"{details.model} on {details.dataset} ",
        element("span", counts, attributes={"class": "faint"}),
    )
    parts = [_confused(details), _texts(details), _images(details), *_remarks(details)]
    return element("details", summary, *(part for part in parts if part is not None), attributes={"open": ""})


def _confused(details: DatasetDetails) -> Markup | None:
    if details.kind != "classification":
        return None
    if not details.confused:
        return element("p", "Every image was taken for what it is.")
    classes = element("ul", *map(_class, details.confused), attributes={"class": "classes"})
    return join(element("h4", "Least found classes, each with an image that was taken for another"), classes)


def _class(one: ConfusedClass) -> Markup:
    wrong = next(iter(one.taken_for))
    bar = element(
        "span",
        element("span", attributes={"class": "fill", "style": f"width:{100 * one.recall:.2f}%"}),
        attributes={"class": "track", "aria-hidden": "true"},
    )
    return element(
        "li",
        tile(one.picture, f"an image of the class {one.name}, taken for {wrong}"),
        element(
            "div",
            element("strong", one.name),
            element("br"),
            element("span", f"{one.num_right} of {one.num_images} found", attributes={"class": "faint"}),
            bar,
            f"taken for {mistakes(one)}",
        ),
    )


def _texts(details: DatasetDetails) -> Markup | None:
    if not details.text_queries:
        return None
    return join(element("h4", "Images found for a text"), *map(_text_query, details.text_queries))


def _text_query(query: TextQuery) -> Markup:
    answers = [_answer(answer, kind="right" if answer.right else "wrong") for answer in query.answers]
    if query.rank > len(query.answers):
        answers.append(_answer(query.right, kind="missed"))
    return element(
        "div",
        element(
            "div",
            element("p", query.text),
            element("p", f"right image at place {query.rank}", attributes={"class": "note"}),
        ),
        element("ol", *answers, attributes={"class": "answers"}),
        attributes={"class": "query"},
    )


def _answer(answer: FoundImage, *, kind: str) -> Markup:
    sign = {"right": f"{RIGHT} ", "wrong": f"{WRONG} ", "missed": "right: "}[kind]
    return element(
        "li",
        tile(answer.picture, answer.caption),
        element("span", f"{sign}{similarity_text(answer.similarity)}", attributes={"class": "sign"}),
        attributes={"class": kind},
    )


def _images(details: DatasetDetails) -> Markup | None:
    if not details.image_queries:
        return None
    return join(element("h4", "Captions found for an image"), *map(_image_query, details.image_queries))


def _image_query(query: ImageQuery) -> Markup:
    captions = [
        element(
            "li",
            element(
                "span",
                f"{RIGHT if one.right else WRONG} {similarity_text(one.similarity)}",
                attributes={"class": "sign"},
            ),
            element("span", one.text),
            attributes={"class": "right" if one.right else "wrong"},
        )
        for one in query.answers
    ]
    found = [element("ol", *captions, attributes={"class": "captions"})]
    if query.rank > len(query.answers):
        found.append(element("p", f"first right caption at place {query.rank}", attributes={"class": "note"}))
    return element(
        "div",
        tile(query.picture, query.caption),
        element("div", *found),
        attributes={"class": "query image-query"},
    )


def _remarks(details: DatasetDetails) -> list[Markup]:
    remarks = []
    if details.text_queries or details.image_queries:
        remarks.append("The queries are spread evenly over the data set, not chosen by how well they go.")
    if details.absent_classes:
        named = ", ".join(details.absent_classes[:_MOST_ABSENT])
        more = len(details.absent_classes) - _MOST_ABSENT
        several = "classes have" if len(details.absent_classes) > 1 else "class has"
        remarks.append(
            f"{len(details.absent_classes):,} {several} no image and took part as wrong answers alone: {named}"
            f"{f' and {more:,} more' if more > 0 else ''}."
        )
    if details.num_lost:
        remarks.append(f"{details.num_lost:,} queries or pictures could not be read again for this page.")
    return [element("p", remark, attributes={"class": "note"}) for remark in remarks]
