"""What `--help` says of a flag: its names, what it takes, and what it is where nobody gives it."""

import pytest

from tests.cli.test_cli import run

DEVICE = "--device auto|cuda|mps|cpu", "auto"
WEIGHTS = "FILE|FOLDER|hf-hub:OWNER/NAME"
MODEL = (
    ("-m NAME, --model NAME", None),
    (f"-c {WEIGHTS}, --checkpoint {WEIGHTS}", None),
    ("--image-size PIXELS", None),
    ("--context-length TOKENS", None),
    DEVICE,
)
WORKERS = "-j PROCESSES, --num-workers PROCESSES"
SHARING = (
    (WORKERS, "1"),
    ("--engine {local,ray}", "local"),
    ("--shard-seconds SECONDS", "3600.0"),
    ("--tries INT", "3"),
    ("--pause-seconds SECONDS", "10.0"),
    ("--pause-growth FLOAT", "4.0"),
)
INDEX = "-i FOLDER, --index FOLDER", None
FLAGS = {
    "classify": (("IMAGE", None), ("LABEL...", None), *MODEL, ("--template STR", "'{}'")),
    "embed": (
        ("[IMAGE|FOLDER|DATA...]", None),
        *MODEL,
        ("--batch-size INT", "32"),
        (WORKERS, "1"),
        ("--precision {float32,bfloat16,int8}", "float32"),
        ("-o PATH, --output PATH", "embeddings.npz"),
    ),
    "convert": (
        ("--to {mobileclip,official,open_clip,timm}", "mobileclip"),
        ("--tower {None,image,text}", None),
        ("--dtype {float32,float16,bfloat16}", "float32"),
    ),
    "index": (
        ("[IMAGE|FOLDER|SHARDS...]", None),
        INDEX,
        *MODEL,
        ("--batch-size INT", "32"),
        (WORKERS, None),
        ("--engine {inline,local,ray}", "inline"),
        ("--ray-address ADDRESS", None),
        ("--gpus-per-worker GPUS", "0.0"),
        ("--forget FOLDER", None),
        ("--decode {fast,exact}", "fast"),
        ("--video-frames {seconds,scenes}", "seconds"),
        ("--video-seconds SECONDS", "10.0"),
        ("--precision {float32,bfloat16,int8}", "bfloat16"),
        ("--web PICTURES.safetensors", None),
    ),
    "search": (
        ("[TEXT]", None),
        INDEX,
        ("--image IMAGE", None),
        ("--not TEXT", None),
        ("--where CONDITION", None),
        ("-k N, --k N", "10"),
        ("--sheet SHEET.png", None),
        DEVICE,
    ),
    "dedup": (
        INDEX,
        ("--threshold SIMILARITY", "0.95"),
        ("-o LIST.jsonl, --output LIST.jsonl", "duplicates.jsonl"),
        ("--page PAGE.html", None),
    ),
    "serve": (INDEX, ("-p PORT, --port PORT", "8000"), DEVICE),
    "export": (("--max-images INT", "100"), ("MODEL", None)),
    "eval report": (("RESULTS.jsonl", None), ("-m NAME, --model NAME", "mobileclip_s2")),
    "data join": (
        ("--by key|url|FIELD", "key"),
        ("--placeholder-threshold KEYS", "10"),
        ("--min-share FRACTION", "0.5"),
        ("--captions FOLDER", None),
        *SHARING,
    ),
    "data urls": (("-o TABLE, --output TABLE", None), *SHARING),
    "data inspect": (("SHARD", None), ("-o SHEET.png, --output SHEET.png", None)),
    "data count": (("SHARDS", None), *SHARING),
    "data verify": (
        ("DIRECTORY", None),
        ("--samples N", "32"),
        ("--num-shards N", None),
        ("--num-rows N", None),
        DEVICE,
        ("--seed INT", "0"),
        *SHARING,
    ),
}


def entries(shown):
    """Return what is said of each flag and argument, by its names and what it takes: they stand two letters in."""
    found, name = {}, ""
    for line in shown.partition("usage: ")[2].splitlines():
        text = line.strip()
        if line.startswith("  ") and not line.startswith("   "):
            name, _, said = text.partition("  ")
            found[name] = said
        elif name:
            found[name] += f" {text}"
    return {name: " ".join(said.split()) for name, said in found.items()}


@pytest.mark.parametrize("command", FLAGS)
def test_flags_say_what_they_take_and_what_they_are_by_default(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = run(capsys, *command.split(), "--help")
    said = entries(out)
    assert status == 0
    assert dict(FLAGS[command]).keys() <= said.keys()
    for name, default in FLAGS[command]:
        if default is not None:
            assert f" (default: {default})" in said[name], name
        else:
            assert "(default: " not in said[name], name
