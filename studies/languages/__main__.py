"""Languages: a second text tower for the packaged model `icons`, for search in 27 languages.

Command:   python -m studies.languages              (with the extra `quickstart` installed)
           python -m studies.languages --languages de --languages fr --num-seeds 1    (two languages, in minutes)
Hardware:  any computer, about 3 GiB of memory
Time:      five minutes on one core per training; the same command resumes an interrupted run
Result:    outputs/languages: icons-multilingual.safetensors with its card, tables.md, results.jsonl, and the texts

The texts are the names of emoji and of things on maps with their English translations, from two npm packages. A bag of
tokens learns to embed each text like the text tower of `icons` embeds its English translation. Some names are held out
to measure generalisation; the shipped tower learns all names.
"""

from __future__ import annotations

from studies.languages.spec import LanguagesSpec


def languages() -> LanguagesSpec:
    """Return the settings; all of them are flags of the command line."""
    return LanguagesSpec()


if __name__ == "__main__":
    from mobileclip.recipes import started
    from mobileclip.terminal.printing import say
    from studies.languages.run import make

    with started(LanguagesSpec, "languages", __doc__, default=languages()) as spec:
        say(f"The text tower is {make(spec)}, with its card beside it.")
