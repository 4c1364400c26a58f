"""Icons: a data set of some 40,000 small drawings with names, captions, splits and licences.

Command:   python -m examples.icons                  (with the extra `quickstart` installed)
           python -m examples.icons --sets bi --sets lucide --sets noto    (fewer sets, in a minute)
Hardware:  any computer, about 2 GiB of memory
Time:      minutes, mostly for rendering; after an interruption, the program resumes with the current icon set
Result:    outputs/icons: shards of each split in the public layout, and datacard.json with counts, sources and licences

npm installs the icon sets. The data set takes one drawing per set and name, most for training. The held-out
parts have unseen drawings of seen names, drawings of an unseen set, and drawings of unseen names. The data set leaves
out, and counts, held-out drawings with a near duplicate in training.
"""

from __future__ import annotations

from examples.icons import IconDataSpec, build_dataset


def icons() -> IconDataSpec:
    """Return the settings of the data set; all of them are flags of the command line."""
    return IconDataSpec()


if __name__ == "__main__":
    from mobileclip.recipes import started
    from mobileclip.terminal.printing import say

    with started(IconDataSpec, "icons", __doc__, default=icons()) as spec:
        say(build_dataset(spec).summary())
