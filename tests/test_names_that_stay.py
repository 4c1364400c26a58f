"""Names that others build on: each is imported from where it is public, and called as its users call it.

A name may get a better one; the old one works on. Numbers are right elsewhere: here, calls do what they did.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import mobileclip
from mobileclip import blocks, build_model, encoders
from mobileclip.cli import main
from mobileclip.data import (
    ReinforcedPipelineSpec,
    augmentation_rng,
    datacompdr_augmentation,
    read_embeddings,
    write_shards,
)
from mobileclip.encoders import (
    CheckpointError,
    DualEncoderSpec,
    ImageEncoderSpec,
    MCiSpec,
    MCtSpec,
    StageSpec,
    TextEncoderSpec,
    TextTransformerSpec,
    ViTSpec,
    image_encoder_families,
    load_model,
    save_model,
    text_encoder_families,
    token_mixers,
)
from mobileclip.evaluation import Session, candidate_of, open_benchmark
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.losses import ReinforcedLoss, ReinforcedLossSpec
from mobileclip.recipes import recipe_files
from mobileclip.reparam import is_folded
from mobileclip.storage import exclusive
from tests.blocks.contract import CASES
from tests.collections.pictures import draw
from tests.data.made_samples import make_sample
from tests.encoders.small import SMALL, inputs, randomised
from tests.names import flags

BLOCKS = (
    "Attention Attention2d AttentionBlock BlockSequence ChannelLayerNorm ConvFFN ConvNorm ConvPatchStem ConvPoolHead "
    "ConvStem Downsample DropPath EndTokenPool FeedForward LargeKernelConv MobileOneBlock PatchStem RepCPE RepMixer "
    "RepMixerBlock SqueezeExcite TextRepMixer TextRepMixerBlock TransformerLayer"
).split()
TRAINED = "b b_dfndr12m b_lt imagenet_mci l14 s0 s1 s2 s3 s4 vit_b16_12m vit_b16_12m_stored vit_b16_12m_text".split()
TRAINED += [f"mobileclip2_{name}" for name in ("b", "l14", "s0", "s2", "s3", "s4")]
RECIPES = {"evaluate", "finetune", *(f"train_{name}" for name in TRAINED)}
RECIPES |= {f"reinforce_{name}" for name in ("datacompdr12m", "datacompdr1b", "dfndr2b")}


@pytest.fixture(scope="module")
def model():
    return randomised(SMALL)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Four pictures of two classes, in the folder that commands work in."""
    monkeypatch.chdir(tmp_path)
    for number, label in enumerate(("cats", "cats", "dogs", "dogs")):
        draw(tmp_path / "photos" / label / f"{number}.png", number)
    return tmp_path / "photos"


@pytest.fixture
def run(capsys):
    """A function that types a command, and returns what it prints; its status is 0."""

    def typed(*arguments, status=0):
        try:
            main([str(argument) for argument in arguments])
            ended = 0
        except SystemExit as leaving:
            ended = leaving.code
        printed = capsys.readouterr()
        assert ended == status, printed.err
        return printed.out

    return typed


class TestModels:
    def test_load_gives_a_model_that_classifies_and_encodes(self, small_file, photos):
        clip = mobileclip.load(str(small_file))
        assert isinstance(clip, mobileclip.ImageTextModel)
        path = photos / "cats" / "0.png"
        scores = clip.classify(str(path), ["a cat", "a dog"], template="a photo of {}")
        assert scores.keys() == {"a cat", "a dog"}
        assert sum(scores.values()) == pytest.approx(1, abs=1e-5)
        images = clip.encode_image([path, Image.open(path)], normalize=True, batch_size=1)
        texts = clip.encode_text("a red bicycle")
        assert (images.shape, texts.shape) == ((2, 24), (1, 24))
        torch.testing.assert_close(images[0], images[1])
        assert mobileclip.load(SMALL, checkpoint=small_file, fold=False).model.spec == SMALL

    def test_models_are_built_by_name_and_folded(self):
        assert build_model is mobileclip.build_model
        tower, images = build_model("mci0").eval(), torch.rand(1, 3, 64, 64)
        first, last = tower.features(images, stages=(0, 2))
        assert (first.shape, last.shape) == ((1, 64, 16, 16), (1, 256, 4, 4))
        assert len(tower.features(images)) == 4
        folded = mobileclip.reparameterize(tower)
        assert is_folded(folded)
        assert not is_folded(tower)
        torch.testing.assert_close(folded(images), tower(images), atol=1e-4, rtol=1e-4)
        assert build_model(SMALL).spec == SMALL
        assert mobileclip.specs.mobileclip_s2().image.embedding_dim == 512

    def test_optimize_keeps_the_embeddings(self, model):
        images, tokens = inputs(SMALL)
        fast = mobileclip.optimize(model, (images, tokens), compiled=False, rounds=1, show_progress=False)
        torch.testing.assert_close(fast.encode_image(images), model.encode_image(images), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(fast.encode_text(tokens), model.encode_text(tokens), atol=1e-3, rtol=1e-3)

    def test_the_releases_entry_points(self):
        model, _, preprocess = mobileclip.create_model_and_transforms("mobileclip_s0", reparameterize=False)
        tokenizer = mobileclip.get_tokenizer("mobileclip_s0")
        assert preprocess(Image.new("RGB", (300, 280))).shape == (3, 256, 256)
        assert model.encode_text(tokenizer(["a diagram", "a dog"])).shape == (2, 512)

    @pytest.mark.parametrize("name", BLOCKS)
    def test_a_block_computes(self, name):
        cases = [case for case in CASES.values() if type(case.make()) is getattr(blocks, name)]
        assert cases
        for case in cases:
            assert case.make().eval()(*case.inputs()).shape == case.output

    def test_registries_name_what_is_published(self):
        assert {"mobileclip_s2", "mobileclip2_s4", "mobileclip_blt"} <= set(blocks.models)
        assert {"mci0", "mci4", "vit_b16"} <= set(blocks.image_encoders)
        assert {"text_base", "text_mct"} <= set(blocks.text_encoders)
        assert {"reference", "sdpa", "xformers"} <= set(blocks.attention_backends)
        assert image_encoder_families["mci"] is MCiSpec
        assert image_encoder_families["vit"] is ViTSpec
        assert text_encoder_families["mct"] is MCtSpec
        assert text_encoder_families["transformer"] is TextTransformerSpec
        assert {"attention", "repmixer"} <= set(token_mixers)
        assert encoders.image_encoder_families is image_encoder_families

    def test_an_encoder_of_ones_own_is_registered(self, monkeypatch):
        monkeypatch.setattr(image_encoder_families, "_values", dict(image_encoder_families._values))

        @image_encoder_families.register("colour")
        class ColourSpec(ImageEncoderSpec):
            def build(self):
                return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(self.embedding_dim))

        assert image_encoder_families.resolve("colour") is ColourSpec
        assert ColourSpec(embedding_dim=5).build()(torch.rand(2, 3, 4, 4)).shape == (2, 5)
        assert issubclass(MCtSpec, TextEncoderSpec)


class TestEncoders:
    def test_specs_describe_towers(self):
        image = MCiSpec(
            stages=(StageSpec(dim=16, depth=1), StageSpec(dim=32, depth=1)), embedding_dim=8, input=ImageInput(size=32)
        )
        vit = ViTSpec(width=32, depth=1, num_heads=2, embedding_dim=8, input=ImageInput(size=32))
        text = TextInput(context_length=9, vocab_size=600)
        texts = [
            TextTransformerSpec(width=32, num_heads=2, depth=1, embedding_dim=8, input=text),
            MCtSpec(width=32, num_heads=2, depth=0, embedding_dim=8, input=text),
        ]
        assert [len(tower.build().features(torch.rand(1, 3, 32, 32), stages=(0,))) for tower in (image, vit)] == [1, 1]
        for spec in texts:
            dual = DualEncoderSpec(image=image, text=spec).build().eval()
            assert dual.encode_image(torch.rand(2, 3, 32, 32)).shape == (2, 8)
            assert dual.encode_text(torch.ones(2, 9, dtype=torch.long)).shape == (2, 8)

    def test_a_model_is_saved_and_loaded(self, model, tmp_path):
        save_model(model, tmp_path / "small.safetensors")
        images, _ = inputs(SMALL)
        whole = load_model(tmp_path / "small.safetensors", fold=False)
        torch.testing.assert_close(whole.encode_image(images), model.encode_image(images))
        tower = load_model(tmp_path / "small.safetensors", SMALL, tower="image", fold=True)
        torch.testing.assert_close(tower(images), model.image_encoder(images), atol=1e-3, rtol=1e-3)
        assert encoders.CheckpointError is CheckpointError
        with pytest.raises(CheckpointError):
            load_model(tmp_path / "small.safetensors", "mobileclip_s0")


def test_the_reinforced_loss():
    spec = ReinforcedLossSpec(
        teacher_dims=(4,), teacher_logit_scales=(10.0,), distill_weight=0.75, contrastive_weight=0.25
    )
    loss = spec.build()
    assert isinstance(loss, ReinforcedLoss)
    image, text, synthetic = torch.nn.functional.normalize(torch.rand(3, 6, 4), dim=-1)
    given = {"image": image, "text": text, "logit_scale": 10.0, "teacher_image": image, "teacher_text": text}
    terms = loss(**given, syn_text=synthetic, teacher_syn_text=synthetic)
    assert terms.total == terms.contrastive + terms.distillation
    assert terms.contrastive > 0
    assert loss(**given).distillation == pytest.approx(0, abs=1e-5)


class TestData:
    @pytest.fixture
    def shards(self, tmp_path):
        write_shards(tmp_path / "shards", map(make_sample, range(8)), samples_per_shard=4)
        return str(tmp_path / "shards" / "{00000000..00000001}.tar")

    @pytest.mark.parametrize("reinforced", [True, False])
    def test_a_pipeline_gives_batches(self, shards, reinforced):
        spec = ReinforcedPipelineSpec(
            shards=shards,
            batch_size=4,
            image=ImageInput(size=16),
            sampling="epoch",
            num_workers=0,
            seed=3,
            reinforced=reinforced,
        )
        batches = list(spec.build())
        assert [len(batch.keys) for batch in batches] == [4, 4]
        assert len({key for batch in batches for key in batch.keys}) == 8
        assert batches[0].image.shape == (4, 3, 16, 16)

    def test_shares_are_drawn_without_end(self, shards):
        spec = ReinforcedPipelineSpec(
            shards=(shards, shards), batch_size=2, image=ImageInput(size=16), sampling="endless", weights=(3.0, 1.0)
        )
        stream = spec.build().stream()
        assert [len(next(stream).keys) for _ in range(6)] == [2] * 6
        stream.close()

    def test_a_stored_augmentation_is_replayed(self):
        augmentation = datacompdr_augmentation(32)
        stored = augmentation.compress(augmentation.sample(augmentation_rng(0, "key", 0), (40, 30)))
        assert augmentation.apply(Image.new("RGB", (40, 30)), augmentation.decompress(stored)).size == (32, 32)

    def test_stored_embeddings_are_read(self, tmp_path):
        np.savez(tmp_path / "a.npz", image_emb=np.ones((3, 6), np.float32))
        rows = read_embeddings("a.npz", (tmp_path / "a.npz").read_bytes(), limit=10_000)
        assert rows.row("image_emb", 1).tolist() == [1.0] * 6

    def test_a_folder_is_held_by_one(self, tmp_path):
        with exclusive(tmp_path / "out", wait_seconds=0.0):
            with pytest.raises(ValueError), exclusive(tmp_path / "out"):  # noqa: PT011  whatever it says
                pass
            assert (tmp_path / "out").is_dir()
        with exclusive(tmp_path / "out"):
            pass


def test_a_session_encodes_a_benchmark(photos, model):
    benchmark = open_benchmark(photos)
    assert benchmark.class_names == ("cats", "dogs")
    session = Session.of(candidate_of(model, name="small"), batch_size=2, show_progress=False)
    features, report = session.features(benchmark)
    assert (features.image.shape, report.num_read) == ((4, 24), 4)
    assert session.encode_texts(["a dog", "a cat"]).shape == (2, 24)


class TestCommands:
    @pytest.mark.parametrize(
        ("command", "given"),
        [
            ("classify", "-c --checkpoint --model --json"),
            ("embed", "-c --checkpoint -o --output --texts"),
            ("index", "-c --checkpoint -i --index"),
            ("search", "--json -k --not --where --image -i --index"),
            ("dedup", "--threshold -o --output -i --index -c --checkpoint"),
            ("serve", "-i --index -p --port"),
            ("eval run", "--output --datasets"),
            ("export", "-c --checkpoint --target --precision --out"),
            ("verify", "-c --checkpoint --data"),
            ("convert", "--to --fold --tower --overwrite"),
            ("info", ""),
            ("list", "--json"),
            ("hub save", "--licence --repository"),
            ("hub push", "--private --message"),
            ("data join", "--index --by"),
            ("train s2", "--data --output --tiny --show --run"),
            ("reinforce datacompdr12m", "--data --output --tiny --show --run --dry-run"),
            ("finetune", "-h --checkpoint --data --output --tiny --show --run"),
        ],
    )
    def test_flags(self, command, given):
        assert set(given.split()) <= set(flags(command))

    def test_recipes_are_found_by_name(self, run, tmp_path):
        assert set(recipe_files()) >= RECIPES
        assert "mobileclip train s2" in run("recipes", "ls")
        run("recipes", "cp", "train_s2", tmp_path / "mine.py")
        assert "RunSpec" in (tmp_path / "mine.py").read_text(encoding="utf-8")

    @pytest.mark.parametrize(
        "line",
        [
            ("train", "s2", "--data", "a.tar", "--training.seed", "7"),
            ("reinforce", "datacompdr12m", "--source", "a.tar", "--output", "out"),
            ("finetune", "--data", "photos/", "--checkpoint", "a.pt"),
        ],
    )
    def test_a_run_shows_its_choices(self, run, line):
        assert json.loads(run(*line, "--show"))

    def test_pictures_are_classified_embedded_and_measured(self, run, photos, small_file):
        said = run("classify", photos / "cats" / "0.png", "a cat", "a dog", "-c", small_file, "--json")
        assert json.loads(said).keys() == {"a cat", "a dog"}
        run("embed", photos, "--checkpoint", small_file, "-o", "e.npz")
        with np.load("e.npz") as stored:
            assert stored["image_embedding"].shape == (4, 24)
        run("eval", small_file, photos, "--output", "results")
        (written,) = (photos.parent / "results").rglob("results.jsonl")
        assert "main_metric" in json.loads(written.read_text(encoding="utf-8"))["metrics"]

    def test_pictures_are_indexed_found_and_compared(self, run, photos, telling_file):
        shutil.copy(photos / "cats" / "0.png", photos / "copy.png")
        run("index", photos, "-c", telling_file)
        found = run("search", "a red bicycle", "--json", "-k", 2, "--not", "people", "--where", "width>50")
        assert [set(match) >= {"path", "score"} for match in json.loads(found)] == [True, True]
        run("dedup", "--threshold", "0.999", "-o", "same.jsonl")
        assert len((photos.parent / "same.jsonl").read_text(encoding="utf-8").splitlines()) == 1

    def test_a_model_is_described_converted_and_published(self, run, small_file, tmp_path):
        assert json.loads(run("info", small_file))["layout"] == "mobileclip"
        assert {json.loads(line)["name"] for line in run("list", "--json").splitlines()} >= {"mobileclip_s0", "mci2"}
        run("convert", small_file, tmp_path / "folded.safetensors", "--fold")
        assert is_folded(load_model(tmp_path / "folded.safetensors"))
        run("hub", "save", small_file, tmp_path / "model", "--licence", "mit")
        assert (tmp_path / "model" / "README.md").exists()

    def test_a_model_is_exported_and_verified(self, run, telling_file, tmp_path):
        given = ("--target", "torch", "--precision", "float32", "--out", tmp_path / "out")
        run("export", telling_file, *given)
        run("verify", tmp_path / "out")

    def test_data_are_counted(self, run, tmp_path):
        write_shards(tmp_path / "shards", map(make_sample, range(3)), samples_per_shard=3)
        assert "3" in run("data", "count", tmp_path / "shards" / "00000000.tar")
