"""A small world to try distilling in: names of icons in three languages, and the packaged model that knows them."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import attrs

from mobileclip.datasets.sources import TextPair
from mobileclip.recipes.distilling.spec import DistilSpec
from mobileclip.storage import write_text
from mobileclip.training import CosineSchedule

TEACHER = "icons"
NUM_TEXTS, NUM_STEPS, BATCH_SIZE = 512, 80, 32
PEAK = 3e-3
_FOLDER = Path("outputs") / "tiny"
_NAMES = """
arrow Pfeil flèche; heart Herz cœur; star Stern étoile; house Haus maison; tree Baum arbre; key Schlüssel clé; lock
Schloss cadenas; bell Glocke cloche; book Buch livre; camera Kamera appareil; car Auto voiture; cat Katze chat;
clock Uhr horloge; cloud Wolke nuage; cup Tasse tasse; dog Hund chien; eye Auge œil; fire Feuer feu; fish Fisch
poisson; flag Fahne drapeau; flower Blume fleur; folder Ordner dossier; globe Globus globe; hand Hand main; hat Hut
chapeau; leaf Blatt feuille; letter Brief lettre; lightning Blitz éclair; map Karte carte; moon Mond lune; mountain
Berg montagne; music Musik musique; pencil Bleistift crayon; phone Telefon téléphone; ship Schiff bateau; shopping
Einkauf achat; snowflake Schneeflocke flocon; sun Sonne soleil; train Zug train; umbrella Regenschirm parapluie
"""
_COLOURS = (("", "", ""), ("red", "rot", "rouge"), ("blue", "blau", "bleu"), ("green", "grün", "vert"))


def shrink(spec: DistilSpec, recipe: DistilSpec) -> DistilSpec:
    """Return the choices made small: few texts, few steps, a narrow student where nothing else is chosen.

    Args:
        spec: the choices.
        recipe: where they come from; its own teacher and texts, which are large, are left to the whole run.

    Raises:
        ValueError, OSError: if there is no text where some are said to be.
    """
    file = _FOLDER / "texts.jsonl"
    has_own, pairs = spec.data != recipe.data, (pair for pair in spec.pairs() if isinstance(pair, TextPair))
    first = islice(pairs, NUM_TEXTS) if has_own else names()
    _FOLDER.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(attrs.asdict(pair), ensure_ascii=False) for pair in first]
    write_text(file, "".join(f"{line}\n" for line in lines))
    peak = spec.training.schedule.peak
    schedule = CosineSchedule(peak=PEAK if peak == CosineSchedule(total_steps=1).peak else peak, total_steps=NUM_STEPS)
    is_chosen = spec.kind == "teacher" or spec.width is not None
    return attrs.evolve(
        spec,
        model=spec.model if spec.model != recipe.model else TEACHER,
        data=(str(file),),
        columns=type(spec.columns)(),
        width=spec.width if is_chosen else 64,
        batch_size=min(BATCH_SIZE, spec.batch_size),
        output=spec.output.with_name(f"{spec.output.name}-tiny"),
        training=attrs.evolve(spec.training, schedule=schedule, precision="float32", ema_decay=0.9),
    )


def names() -> list[TextPair]:
    """Return names of icons in English, German and French, each with the English one for the teacher."""
    pairs = []
    for words in (entry.split() for entry in _NAMES.split(";")):
        for colours in _COLOURS:
            texts = [f"{colour} {word}".strip() for colour, word in zip(colours, words, strict=True)]
            languages = zip(("en", "de", "fr"), texts, strict=True)
            pairs += [TextPair(text=text, teacher_text=texts[0], language=language) for language, text in languages]
    return pairs
