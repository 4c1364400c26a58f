"""Labels of zero-shot classification: what is a label, the prompts that it stands in, and the mean of these."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from mobileclip.strict import repeated


def ensemble_prompts(text: Tensor) -> Tensor:
    """Return one unit-length embedding per class: prompts are normalised, averaged, and normalised again.

    Shape:
        text: `(classes, templates, dim)`; result: `(classes, dim)`.

    Source: Radford et al., "Learning Transferable Visual Models", section 3.1.4.
    """
    return F.normalize(F.normalize(text.float(), dim=-1).mean(dim=1), dim=-1)


def fill_templates(labels: Sequence[str], template: str | Sequence[str]) -> list[str]:
    """Return every label in every template, the templates of the first label first.

    Args:
        labels: at least one; two may be equal, as two class names of ImageNet are.
        template: a prompt with a place for the label, such as `a photo of a {}.`; or several.

    Raises:
        ValueError: if there is no label or no template, or a template has no `{}`.
    """
    templates = _as_templates(template)
    if not labels:
        raise ValueError("there are no labels; expected at least one class name")
    return [one.replace("{}", label) for label in labels for one in templates]


def label_keys(labels: Sequence[str], template: str | Sequence[str]) -> list[str]:
    """Return what labels in a template, or in several, are kept under, beside texts."""
    digest = hashlib.sha256(repr(_as_templates(template)).encode("utf-8", errors="surrogatepass")).hexdigest()
    return [f"{digest}\0{label}" for label in labels]


def require_labels(labels: Sequence[str], template: str | Sequence[str]) -> None:
    """Refuse texts that nothing can be chosen among.

    Args:
        labels: at least one, no two equal, none blank.
        template: see `fill_templates`.

    Raises:
        ValueError: if they are not.
    """
    if isinstance(labels, str) or not labels:
        raise ValueError('labels are a list of at least one text to choose among, such as "a cat" "a dog"')
    if not all(label.strip() for label in labels):
        raise ValueError("a label is blank; expected texts to choose among")
    if twice := repeated(labels):
        raise ValueError(f"labels are given twice: {', '.join(twice[:5])}")
    _as_templates(template)


def _as_templates(template: str | Sequence[str]) -> list[str]:
    templates = [template] if isinstance(template, str) else list(template)
    if not templates:
        raise ValueError("there is no template; leave template out for the labels alone, or give 'a photo of a {}'")
    for one in templates:
        if "{}" not in one:
            raise ValueError(f"the template {one!r} has no {{}} for the label, as in 'a photo of a {{}}'")
    return templates
