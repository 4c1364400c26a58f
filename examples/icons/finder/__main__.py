"""Icon finder: a static page that searches the icons of twenty sets in 27 languages, online and offline.

Command:   python -m examples.icons.finder            (with the extra `quickstart` installed), or: make finder
           python -m examples.icons.finder --sets lucide --sets tabler --output build/two   (two sets)
           python -m http.server --directory build/finder                                   (then open it)
Hardware:  any computer, about 2 GiB of memory
Time:      minutes, mostly for rendering; after an interruption, the program resumes with the current icon set
Result:    build/finder: a folder for any static server, and report.json with its bytes, icons and recall

npm installs the drawings. The program renders drawings like `python -m examples.icons`, and uses an existing folder of
that program. The packaged model embeds the drawings. The page has 32 dimensions of the embeddings in int8, and both
text towers in JavaScript.
"""

from __future__ import annotations

import json

from examples.icons.finder import FinderSpec, build_finder

if __name__ == "__main__":
    from mobileclip.recipes import started
    from mobileclip.terminal.printing import say

    with started(FinderSpec, "finder", __doc__, default=FinderSpec()) as spec:
        say(json.dumps(build_finder(spec), indent=1))
        say(f"python -m http.server --directory {spec.output}")
