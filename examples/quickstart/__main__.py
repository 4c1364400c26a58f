"""Quickstart: the whole pipeline on real images, on a laptop's CPU.

Command:   make quickstart            (or: python -m examples.quickstart, with the extra `quickstart` installed)
Hardware:  2 CPU cores, about 4 GiB of memory, no GPU
Time:      about ten minutes after installing the packages; a second run resumes, or reports that nothing is left to do
Result:    outputs/quickstart: report.md (the table), curves.png, pictures.html, and the model, quickstart.safetensors

The data are emoji drawings of six vendors. Each training drawing has a noisy caption, a few keywords, and synthetic
captions. An ensemble of two teachers (pretrained encoders with heads trained here) reinforces the drawings, and a small
MobileCLIP learns from the reinforced data. A second model learns from the same images and captions without the
teachers, and a third model from the noisy captions alone, like plain CLIP. The evaluation uses images, a style and
concepts that training never saw.
"""

from __future__ import annotations

from examples.quickstart.run import run
from examples.quickstart.spec import QuickstartSpec


def quickstart() -> QuickstartSpec:
    """Return the settings of the run; all of them are flags of the command line."""
    return QuickstartSpec()


if __name__ == "__main__":
    from mobileclip.recipes import started

    with started(QuickstartSpec, "quickstart", __doc__, default=quickstart()) as spec:
        run(spec)
