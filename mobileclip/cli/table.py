"""The commands by name, in groups: where each is, an example, and what it does in a few words."""

from __future__ import annotations

from mobileclip.cli.commands import Command, Commands

_EVAL = Commands(
    "Evaluate models, and set results beside published ones; `run` may be left out.",
    {
        "commands": {
            "run": Command("evaluate:evaluate", "run s2.pt my_classes/", "evaluate models on data sets"),
            "orders": Command("evaluate:orders", "orders aro/coco_order --data sets/", "orders of words, for ARO"),
            "report": Command("evaluate:report", "report results.jsonl -m mobileclip_s0", "beside published results"),
        }
    },
    "eval s2.pt my_classes/",
    "accuracy, retrieval on data",
)
_RECIPES = Commands(
    "List the published recipes, or copy one to change it.",
    {
        "commands": {
            "ls": Command("recipes:list_recipes", "ls", "the published recipes"),
            "cp": Command("recipes:copy", "cp train_s2 -o my_s2.py", "copy one to change it"),
        }
    },
    "recipes ls",
    "list or copy published recipes",
)
_DATA = Commands(
    "Look into data sets, join published ones with their images, and choose samples.",
    {
        "look": {
            "inspect": Command("data:inspect", "inspect shard.tar -o sheet.png", "a sample and its views"),
            "count": Command("data:count", "count 'shards/{000..127}.tar'", "number of samples, kept beside them"),
            "check": Command("data:check", "check DataCompDR-12M", "whether shards can be read and are true"),
            "captions": Command("captions:captions", "captions a.tar b.tar -o a.html", "captions side by side"),
        },
        "join": {
            "urls": Command("data:urls", "urls DataComp-12M -o urls.parquet", "the URLs to download"),
            "join": Command("data:join", "join DataCompDR-12M images -o joined/", "put images into shards"),
        },
        "choose": {
            "score": Command("curation:score", "score DataCompDR-12M -o scores", "how well captions fit images"),
            "filter": Command("curation:filter_", "filter scores -o kept.npy", "the samples that fit best"),
            "distinct": Command("curation:distinct", "distinct scores -o kept.npy", "samples without near duplicates"),
            "tune-scale": Command("curation:tune_scale", "tune-scale held_out.tar", "a logit scale per teacher"),
        },
    },
    "data inspect shard.tar -o sheet.png",
    "look into, join, filter data",
)
_HUB = Commands(
    "Write models as open_clip and timm load them too, and push them.",
    {
        "commands": {
            "save": Command("hub:save", "save s2.safetensors -o s2/ --license mit", "a folder to publish"),
            "push": Command("hub:push", "push s2.safetensors me/s2 --license mit", "publish it"),
        }
    },
    "hub save s2.safetensors -o s2/",
    "folders of open_clip and timm",
)
_TOKENIZER = Commands(
    "Train a tokenizer on texts of your own.",
    {
        "commands": {
            "train": Command("tokenizers:train", "train german.txt -o tokenizer.json", "a tokenizer.json of texts"),
        }
    },
    "tokenizer train german.txt -o t.json",
    "vocabularies of your own texts",
)
_CONCEPT = Commands(
    "Name things of your own in an index of pictures, and teach them by examples.",
    {
        "commands": {
            "add": Command("concepts:add", 'add "my bike" --yes a.jpg', "a name, and examples of it"),
            "ls": Command("concepts:list_concepts", "ls", "those that an index has"),
            "show": Command("concepts:show", 'show "my bike"', "its text and its examples"),
            "rm": Command("concepts:remove", 'rm "my bike"', "remove it"),
        }
    },
    'concept add "my bike"',
    "things of your own, by examples",
)

COMMANDS = Commands(
    """
    Fast image-text models: use, search, measure and train them.

    `mobileclip --version` says which version this is. With `--import MODULE`, any command first imports a module of
    your own, by its name or the path of its file, whose decorators register parts.
    """,
    {
        "use a model": {
            "classify": Command("encode:classify", 'classify photo.jpg "a cat" "a dog"', "which text fits a picture"),
            "embed": Command("encode:embed", "embed photos/ -o photos.npz", "embeddings as a NumPy archive"),
            "export": Command("export:export", "export s2.pt -o s2_onnx", "for phones, browsers, servers"),
            "quantize": Command("quantize:quantize", "quantize s2.pt --texts t.txt -o q.safetensors", "tuned to int8"),
            "list": Command("models:list_models", "list", "models and towers known by name"),
            "info": Command("models:info", "info mobileclip_s2", "what a model or a checkpoint is"),
        },
        "search pictures": {
            "index": Command("indexing:index", "index photos/", "make pictures ready for search"),
            "search": Command("collections:search", 'search "a red bicycle"', "find pictures by what they show"),
            "dedup": Command("collections:dedup", "dedup photos/", "pictures that show the same"),
            "serve": Command("collections:serve", "serve", "search in a browser"),
            "merge": Command("indexing:merge", "merge a.index b.index -o c.index", "join indexes of one model"),
            "upgrade": Command("upgrade:upgrade", "upgrade --to mobileclip_s2", "to another model"),
            "tag": Command("concepts:tag", "tag --vocabulary words.txt", "words to filter by"),
            "concept": _CONCEPT,
        },
        "measure": {
            "eval": _EVAL,
            "verify": Command("export:verify", "verify s2_onnx", "an export against its model"),
            "check-weights": Command(
                "models:check_weights", "check-weights mobileclip_s0", "weights by published outputs"
            ),
        },
        "train": {
            "train": Command("recipes:train", "train s2 --tiny", "train by a recipe"),
            "reinforce": Command("recipes:reinforce", "reinforce datacompdr12m --tiny", "captions and teachers' views"),
            "finetune": Command("recipes:finetune", "finetune --tiny", "train on pictures of your own"),
            "tokenizer": _TOKENIZER,
            "recipes": _RECIPES,
            "runs": Command("recipes:runs", "runs outputs/a outputs/b", "trainings side by side"),
        },
        "files and shells": {
            "data": _DATA,
            "convert": Command("models:convert", "convert s2.pt -o s2.safetensors", "weights in another layout"),
            "hub": _HUB,
            "completion": Command("completion:completion", "completion", "what bash and zsh complete by"),
        },
    },
)
