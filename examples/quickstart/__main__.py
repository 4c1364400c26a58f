"""Quickstart: the whole path on real images, on a laptop's CPU.

Command:   make quickstart            (or: python -m examples.quickstart, with the extra `quickstart` installed)
Hardware:  2 CPU cores, about 4 GiB of memory, no GPU
Time:      about ten minutes, once the packages are installed; a second run resumes, or says that it is done
Result:    outputs/quickstart: report.md (the table), curves.png, pictures.html, and the model, quickstart.safetensors

Emoji drawings of six vendors are split. For training each has a noisy caption, a few keywords, and synthetic ones. An
ensemble of two teachers (pretrained encoders with heads trained here) reinforces them, and a small MobileCLIP learns
from what is stored. A second one learns from the same pictures and captions without the teachers, a third one from the
noisy captions alone, as plain CLIP does. All are evaluated on pictures, a style and concepts that training never saw.
"""

from __future__ import annotations

from examples.quickstart.run import run
from examples.quickstart.spec import QuickstartSpec


def quickstart() -> QuickstartSpec:
    """Return the run: everything is a flag of the command line."""
    return QuickstartSpec()


if __name__ == "__main__":
    from mobileclip.recipes import started

    with started(QuickstartSpec, "quickstart", __doc__, default=quickstart()) as spec:
        run(spec)
