"""Models as folders: what is in them, who loads them, what their cards say, and what is never written over."""

import json
import re
from collections.abc import Mapping

import attrs
import pytest
import torch
from huggingface_hub import ModelCard, metadata_load
from PIL import Image

from mobileclip import ImageTextModel, reparameterize, specs
from mobileclip.cli import main as command_line
from mobileclip.data import ImageTransform, Tokenizer, read_text_input
from mobileclip.encoders import ClassifierSpec, DualEncoderSpec, TextTransformerSpec, ViTSpec, load_model, save_model
from mobileclip.evaluation import DatasetResult
from mobileclip.inputs import ImageInput
from mobileclip.interop import from_pretrained, open_clip_config, save_pretrained, timm_config
from mobileclip.interop.transformers_folder import TRANSFORMERS
from mobileclip.tensor_files import CheckpointError
from tests.data.tokenizer_files import bert
from tests.encoders.small import IMAGE, SMALL, TEXT, VIT, randomised
from tests.errors import fails
from tests.golden.checkpoints import relative_error
from tests.interop.models import DUAL, PHOTO, TOWER, WITH_TEXTS
from tests.interop.round_trip import same
from tests.lazily import lazily

open_clip, timm, transformers = lazily("open_clip"), lazily("timm"), lazily("transformers")
PUBLISHED = [f"MobileCLIP2-{size}" for size in ("B", "L-14", "S0", "S2", "S3", "S4")]

FIVE = attrs.evolve(
    specs.mci3(),
    stages=tuple(
        attrs.evolve(stage, dim=dim, depth=1)
        for stage, dim in zip(specs.mci3().stages, (32, 32, 64, 64, 128), strict=True)
    ),
    embedding_dim=40,
    projection_bias=True,
    input=ImageInput(size=64),
)
CONVOLUTIONAL = ViTSpec(depth=1, num_heads=6, stem_padding=0, norm_eps=1e-6, input=ImageInput(size=64))
PATCH = attrs.evolve(specs.vit_l14(), width=32, depth=2, num_heads=2, patch_size=8, input=ImageInput(size=56))
BARE = TOWER.without_projection()
CLASSIFIER = ClassifierSpec(image=BARE, num_classes=3, class_names=("cat", "dog", "owl"))
ON_EMBEDDINGS = ClassifierSpec(image=TOWER, num_classes=3)
VIT_B = specs.mobileclip2_b()


class TestFolders:
    @pytest.mark.parametrize(
        ("spec", "folded", "files", "library"),
        [
            pytest.param(SMALL, False, {"model.safetensors"}, "mobileclip", id="dual"),
            pytest.param(SMALL, True, {"model.safetensors"}, "mobileclip", id="dual-folded"),
            pytest.param(TOWER, False, {"model.safetensors", "config.json"}, "timm", id="tower"),
            pytest.param(TOWER, True, {"model.safetensors"}, "mobileclip", id="tower-folded"),
            pytest.param(IMAGE, False, {"model.safetensors"}, "mobileclip", id="tower-of-ours"),
            pytest.param(TEXT, False, {"model.safetensors"}, "mobileclip", id="text"),
            pytest.param(BARE, False, {"model.safetensors", "config.json"}, "timm", id="without-projection"),
            pytest.param(CLASSIFIER, False, {"model.safetensors", "config.json"}, "timm", id="classifier"),
            pytest.param(ON_EMBEDDINGS, False, {"model.safetensors"}, "mobileclip", id="classifier-on-embeddings"),
        ],
    )
    def test_what_is_saved_comes_back_to_the_bit(self, spec, folded, files, library, tmp_path):
        model = reparameterize(randomised(spec)) if folded else randomised(spec)
        folder = save_pretrained(model, tmp_path / "made" / "model", license="mit")
        assert {path.name for path in folder.iterdir()} == {"README.md", *files}
        assert metadata_load(folder / "README.md")["library_name"] == library
        assert same(from_pretrained(folder, fold=folded), model)

    def test_a_tokenizer_of_its_own_is_there_and_keeps_other_libraries_away(self, tmp_path):
        bert().save(str(tmp_path / "theirs.json"))
        text = attrs.evolve(TEXT, input=read_text_input(tmp_path / "theirs.json", context_length=12))
        model = randomised(DualEncoderSpec(image=TOWER, text=text))
        folder = save_pretrained(model, tmp_path / "model", license="mit")
        assert {path.name for path in folder.iterdir()} == {"README.md", "model.safetensors", "tokenizer.json"}
        assert (folder / "tokenizer.json").read_bytes() == (tmp_path / "theirs.json").read_bytes()
        assert text.input.tokenizer.sha256 in (folder / "README.md").read_text(encoding="utf-8")

    def test_nothing_is_written_over_but_what_was_written_so(self, tmp_path):
        folder = save_pretrained(randomised(TOWER), tmp_path / "model", license="mit")
        with fails(FileExistsError):
            save_pretrained(randomised(TEXT), folder, license="mit")
        save_pretrained(randomised(TEXT), folder, license="mit", overwrite=True)
        assert {path.name for path in folder.iterdir()} == {"README.md", "model.safetensors"}
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        (folder / "notes.txt").write_text("mine")
        with fails(FileExistsError, "notes.txt"):
            save_pretrained(randomised(TEXT), folder, license="mit", overwrite=True)
        (tmp_path / "project").mkdir()
        (tmp_path / "project" / "README.md").write_text("mine")
        with fails(FileExistsError):
            save_pretrained(randomised(TEXT), tmp_path / "project", license="mit", overwrite=True)

    @pytest.mark.parametrize(
        "options",
        [
            {"license": "MIT License"},
            {"license": ""},
            {"repository": "name"},
            {"repository": "owner/name\n# Free"},
            {"base_model": "mobileclip_s2"},
        ],
    )
    def test_names_that_the_hub_has_not_are_refused(self, options, tmp_path):
        with fails(ValueError):
            save_pretrained(randomised(TEXT), tmp_path / "model", **{"license": "mit", **options})
        assert not list(tmp_path.iterdir())

    def test_a_folder_is_asked_for_what_it_has(self, tmp_path):
        folder = save_pretrained(randomised(TEXT), tmp_path / "model", license="mit")
        with fails(ValueError):
            from_pretrained(folder, revision="main")
        (folder / "more.safetensors").write_bytes(b"")
        with fails(CheckpointError):
            from_pretrained(folder)


class TestTimm:
    @pytest.mark.parametrize(
        "spec",
        [
            pytest.param(specs.mci0(), id="mci0"),
            pytest.param(TOWER, id="four-stages"),
            pytest.param(FIVE, id="five-stages"),
            pytest.param(CONVOLUTIONAL, id="vit-convolutional"),
            pytest.param(PATCH, id="vit-patch"),
        ],
    )
    @torch.inference_mode()
    def test_builds_the_tower_with_equal_embeddings_and_features(self, spec, tmp_path):
        tower = randomised(spec)
        name = f"local-dir:{save_pretrained(tower, tmp_path / 'tower', license='mit')}"
        theirs = timm.create_model(name, pretrained=True).eval()
        preprocess = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
        image = Image.open(PHOTO).convert("RGB")
        images = preprocess(image)[None]
        ours = ImageTransform(spec.input)(image)
        assert images[0].shape == ours.shape
        assert relative_error(theirs(images), tower(images)) < 1e-5
        pixels, maps = ours[None], tower.features(ours[None])
        for own, other in zip(maps, theirs.forward_intermediates(pixels, intermediates_only=True), strict=True):
            assert relative_error(other, own) < 1e-5

    @pytest.mark.parametrize(
        "spec",
        [
            BARE,
            CLASSIFIER,
            ClassifierSpec(image=attrs.evolve(PATCH, projection=False, embedding_dim=32), num_classes=3),
        ],
    )
    @torch.inference_mode()
    def test_builds_classifiers_and_towers_without_a_projection(self, spec, tmp_path):
        model = randomised(spec)
        folder = save_pretrained(model, tmp_path / "model", license="mit")
        theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        size = theirs.pretrained_cfg["input_size"][-1]
        images = torch.rand(2, 3, size, size)
        assert relative_error(theirs(images), model(images)) < 1e-5
        class_names = spec.class_names if isinstance(spec, ClassifierSpec) else ()
        assert tuple(theirs.pretrained_cfg.get("label_names", ())) == class_names
        torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
        loaded = load_model(tmp_path / "theirs.pth", spec, fold=False)
        assert same(loaded, model)
        tower = load_model(tmp_path / "theirs.pth", spec, tower="image", fold=False)
        assert same(tower, model.image_encoder if isinstance(spec, ClassifierSpec) else model)

    @pytest.mark.parametrize("name", ["mci0", "mci1", "mci2", "mci3", "mci4", "vit_l14"])
    def test_has_the_published_towers_by_name(self, name):
        config = timm_config(getattr(specs, name)(), licence="mit")
        assert timm.is_model(config["architecture"])
        assert "model_args" not in config

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            (IMAGE, "none, none, batch"),
            (VIT, "stem_padding"),
            (attrs.evolve(PATCH, norm_eps=1e-6), "norm_eps"),
        ],
    )
    def test_what_it_does_not_build_is_said(self, spec, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            timm_config(spec, licence="mit")
        folder = save_pretrained(randomised(spec), tmp_path / "model", license="mit")
        assert message.replace("_", "\\_") in (folder / "README.md").read_text(encoding="utf-8")
        assert not (folder / "config.json").exists()


class TestOpenClip:
    @torch.inference_mode()
    def test_loads_a_folder_with_equal_embeddings(self, tmp_path):
        dual = randomised(DUAL)
        folder = save_pretrained(dual, tmp_path / "model", license="mit")
        others = {"README.md", "model.safetensors", "open_clip_config.json", "open_clip_model.safetensors"}
        assert {path.name for path in folder.iterdir()} == {*others, *TRANSFORMERS}
        assert same(from_pretrained(folder, fold=False), dual)
        theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        theirs.eval()
        images = preprocess(Image.open(PHOTO).convert("RGB"))[None]
        assert relative_error(theirs.encode_image(images), dual.encode_image(images)) < 1e-5
        tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["a cat", "two dogs on a beach"])
        assert torch.equal(tokens, Tokenizer(DUAL.text.input)(["a cat", "two dogs on a beach"]))
        assert relative_error(theirs.encode_text(tokens), dual.encode_text(tokens)) < 1e-5
        assert torch.equal(theirs.logit_scale, dual.logit_scale[0])

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_has_the_published_models_as_we_describe_them(self, name):
        spec = getattr(specs, name.lower().replace("-", "_").replace("l_14", "l14"))()
        ours, theirs = open_clip_config(spec)["model_cfg"], open_clip.get_model_config(name)
        # A rate of training alone.
        theirs["vision_cfg"]["timm_drop_path"] = 0.0
        assert ours == theirs

    @pytest.mark.parametrize(
        ("spec", "word"),
        [
            (specs.mobileclip_s0(), "MCtSpec"),
            (specs.mobileclip_b(), ""),
            (DualEncoderSpec(image=attrs.evolve(TOWER, embedding_dim=512), text=specs.text_base()), ""),
            (SMALL, ""),
            (attrs.evolve(DUAL, image=attrs.evolve(IMAGE, embedding_dim=512)), "none, none, batch"),
            (attrs.evolve(VIT_B, image=attrs.evolve(VIT_B.image, input=ImageInput(size=384))), "224"),
        ],
    )
    def test_what_it_does_not_build_is_said(self, spec, word):
        with fails(ValueError, word):
            open_clip_config(spec)


SENTENCES = ["a red bicycle in snow", "cat", "word " * 90]


class TestTransformers:
    @pytest.mark.parametrize(
        ("spec", "text_model"),
        [
            pytest.param(WITH_TEXTS, "sam3_lite_text_text_model", id="mct"),
            pytest.param(
                attrs.evolve(WITH_TEXTS, text=TextTransformerSpec(width=64, num_heads=2, depth=2, embedding_dim=32)),
                "sam3_lite_text_text_model",
                id="padding-is-attended-to",
            ),
            pytest.param(
                DualEncoderSpec(
                    image=attrs.evolve(CONVOLUTIONAL, embedding_dim=32),
                    text=TextTransformerSpec(width=64, num_heads=2, depth=2, embedding_dim=32, causal=True),
                ),
                "clip_text_model",
                id="causal",
            ),
        ],
    )
    @torch.inference_mode()
    def test_loads_a_folder_with_equal_embeddings_and_writes_one(self, spec, text_model, tmp_path):
        model, photo = randomised(spec), Image.open(PHOTO).convert("RGB")
        folder = save_pretrained(model, tmp_path / "model", license="mit", library="transformers")
        assert {path.name for path in folder.iterdir()} == {"README.md", "model.safetensors", *TRANSFORMERS}
        assert same(from_pretrained(folder, fold=False), model)
        theirs = transformers.AutoModel.from_pretrained(folder).eval()
        assert theirs.config.text_config.model_type == text_model
        padded = {"padding": "max_length", "max_length": 77, "truncation": True}
        given = transformers.AutoProcessor.from_pretrained(folder)(
            text=SENTENCES, images=photo, return_tensors="pt", **padded
        )
        assert torch.equal(given["input_ids"], Tokenizer(spec.text.input)(SENTENCES))
        texts = theirs.get_text_features(input_ids=given["input_ids"]).pooler_output
        assert relative_error(texts, model.encode_text(given["input_ids"])) < 1e-5
        images = theirs.get_image_features(pixel_values=given["pixel_values"]).pooler_output
        assert relative_error(images, model.encode_image(given["pixel_values"])) < 1e-5
        ours = model.encode_image(ImageTransform(spec.image.input)(photo)[None])
        assert torch.cosine_similarity(images, ours) > 0.9999
        theirs.text_projection.weight.mul_(2)
        theirs.save_pretrained(tmp_path / "theirs")
        trained = ImageTextModel(from_pretrained(tmp_path / "theirs"))
        assert relative_error(trained.model.encode_text(given["input_ids"]), 2 * texts) < 1e-5

    @pytest.mark.parametrize(
        ("model", "error"),
        [
            (randomised(specs.mobileclip_b()), "stem"),
            (reparameterize(randomised(WITH_TEXTS)), "folded"),
            (randomised(SMALL), "stages"),
            (randomised(TOWER), "image-text model"),
        ],
    )
    def test_what_it_does_not_build_is_refused(self, model, error, tmp_path):
        with fails(ValueError, error):
            save_pretrained(model, tmp_path / "model", license="mit", library="transformers")
        assert not (tmp_path / "model").exists()

    def test_the_command(self, tmp_path):
        save_model(randomised(WITH_TEXTS), tmp_path / "model.safetensors")
        command_line(
            ["convert", f"{tmp_path / 'model.safetensors'}", "--to", "transformers", "-o", f"{tmp_path / 'f'}"]
        )
        assert same(from_pretrained(tmp_path / "f", fold=False), randomised(WITH_TEXTS))


HOSTILE = [
    "cats | dogs",
    "a\n---\nlicense: mit",
    "`x` <script>",
    "![x](y) **b**",
    "\u2028\u202e猫😀\x07\x00",
    '"}]: {"',
]


class TestCards:
    @pytest.mark.parametrize("name", HOSTILE)
    def test_names_are_shown_and_do_nothing(self, name, tmp_path):
        result = DatasetResult(key=name, dataset=name, metrics={"main_metric": 0.5, name: 0.5}, num_images=7)
        folder = save_pretrained(randomised(TEXT), tmp_path / "model", license="apple-amlr", results=[result])
        content = (folder / "README.md").read_text(encoding="utf-8")
        data = metadata_load(folder / "README.md")
        assert set(data) == {"license", "library_name", "pipeline_tag", "tags", "model-index"}
        assert data["license"] == "apple-amlr"
        last = content.splitlines()[-1]
        assert last.replace("\\|", "").count("|") == 6
        assert not any(mark in last.replace("\\<", "").replace("\\`", "") for mark in "<`")
        assert content.count("\n## ") == 4
        assert content.isprintable() or {letter for letter in content if not letter.isprintable()} == {"\n"}

    def test_the_hub_reads_numbers_as_they_were_measured(self, tmp_path):
        metrics = {"main_metric": 0.6543, "acc1": 0.6543, "acc5": 0.9, "count_worst": 12.0}
        results = [DatasetResult(key="imagenet1k", dataset="ImageNet 1k", metrics=metrics, num_images=50_000)]
        folder = save_pretrained(
            randomised(SMALL), tmp_path / "model", license="cc-by-4.0", repository="me/small", results=results
        )
        card = ModelCard.load(folder / "README.md")
        found = {(one.dataset_type, one.metric_type): one.metric_value for one in card.data.eval_results}
        assert found == {("imagenet1k", "acc1"): 0.6543, ("imagenet1k", "acc5"): 0.9}
        assert card.data.model_name == "small"
        assert card.data.pipeline_tag == "zero-shot-image-classification"
        assert "| ImageNet 1k | 50,000 | acc1 | 65.43% | acc5 90.00% |" in card.text

    def test_it_tells_the_contract_and_the_licence(self, tmp_path):
        folder = save_pretrained(randomised(TOWER), tmp_path / "model", license="apple-amlr")
        card = (folder / "README.md").read_text(encoding="utf-8")
        rows = dict(re.findall(r"^\| (\w+) \| (.*) \|$", card, re.MULTILINE))
        assert rows["mean"] == "0.5, 0.4, 0.3"
        assert rows["interpolation"].startswith("bicubic")
        assert rows["size"].startswith("64 x 64")
        config: Mapping[str, object] = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
        assert (config["mean"], config["license"]) == ([0.5, 0.4, 0.3], "apple-amlr")

    def test_it_names_what_the_model_was_made_of(self, tmp_path):
        model = randomised(TEXT)
        folder = save_pretrained(model, tmp_path / "model", license="mit", base_model="apple/MobileCLIP-S2")
        assert ModelCard.load(folder / "README.md").data.base_model == "apple/MobileCLIP-S2"

    @pytest.mark.parametrize(
        ("spec", "libraries"),
        [(TOWER, ["mobileclip", "timm"]), (CLASSIFIER, ["mobileclip", "timm"]), (TEXT, ["mobileclip"])],
        ids=["tower", "classifier", "text"],
    )
    def test_it_says_how_the_model_is_loaded(self, spec, libraries, tmp_path):
        folder = save_pretrained(randomised(spec), tmp_path / "model", license="mit", repository="me/small")
        card = (folder / "README.md").read_text(encoding="utf-8")
        blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        for block, library in zip(blocks, libraries, strict=True):
            compile(block, "card", "exec")
            assert f"{library}" in block
            assert "me/small" in block
