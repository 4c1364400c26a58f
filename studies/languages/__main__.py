"""Languages: a second text tower for the packaged model of icons, for search in 27 languages.

Command:   python -m studies.languages              (with the extra `quickstart` installed)
           python -m studies.languages --languages de --languages fr --num-seeds 1    (two languages, in minutes)
Hardware:  any computer, about 3 GiB of memory
Time:      five minutes of one core for each training; it may be stopped, and goes on
Result:    outputs/languages: icons-multilingual.safetensors with its card, tables.md, results.jsonl, and the texts

The texts are the names of emoji and of things on maps, with their English, from two npm packages. The text tower of
`icons` says what the English means, and a bag of tokens learns to say it of the other languages. Some names are held
out, to see what is not just remembered; the tower that ships learns all.
"""

from __future__ import annotations

from studies.languages.spec import LanguagesSpec


def languages() -> LanguagesSpec:
    """Return the choices: everything is a flag of the command line."""
    return LanguagesSpec()


if __name__ == "__main__":
    from mobileclip.recipes import started
    from mobileclip.terminal.printing import say
    from studies.languages.run import make

    with started(LanguagesSpec, "languages", __doc__, default=languages()) as spec:
        say(f"The text tower is {make(spec)}, with its card beside it.")
