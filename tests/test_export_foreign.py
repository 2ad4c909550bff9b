"""GPT-2 as nanoGPT, Keras and TensorFlow save it: the same logits, the same ids, and one line for what is damaged.

tests/fixtures/foreign was made by TensorFlow itself; nanoGPT is a script and no library, so its model is written anew
here from its description.
"""

import json
import pickle
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from test_security import FORMS, plant
from torch import nn

from stylegen.config import END_OF_TEXT, UsageError
from stylegen.config.commands import SourceArguments
from stylegen.export import export, keras, load_for_writing, nanogpt, tensorflow
from stylegen.export.tensorflow import _table
from stylegen.sampling import SamplingSettings, write_texts

FOREIGN = ROOT / "tests" / "fixtures" / "foreign"
EXPECTED = np.load(FOREIGN / "logits.npz")
CHARACTERS = "\n !'abcdefghijklmnopqrstuvwxyz\u00e9\U0001f600"
CPU = torch.device("cpu")


def loaded(path: Path, **source):
    return load_for_writing(str(path), SourceArguments(**source), CPU)


def refused(path: Path, **source) -> str:
    with pytest.raises(UsageError) as caught:
        loaded(path, **source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@torch.no_grad()
def logits_of(model, input_ids) -> torch.Tensor:
    return model(torch.as_tensor(input_ids)).logits


@pytest.fixture(params=["keras", "tensorflow"])
def foreign(request, tmp_path) -> Path:
    return Path(shutil.copytree(FOREIGN / request.param, tmp_path / request.param))


@pytest.fixture
def bundle(tmp_path) -> Path:
    return Path(shutil.copytree(FOREIGN / "tensorflow", tmp_path / "run1"))


@pytest.fixture
def keras_folder(tmp_path) -> Path:
    return Path(shutil.copytree(FOREIGN / "keras", tmp_path / "keras"))


# --- Keras and TensorFlow


def test_the_logits_are_those_that_tensorflow_computed(foreign):
    model, _ = loaded(foreign)
    assert not model.training and model.dtype == torch.float32
    assert model.config.activation_function == "gelu_new" and model.config.eos_token_id == 0
    difference = np.abs(logits_of(model, EXPECTED["input_ids"]).numpy() - EXPECTED["logits"])
    assert difference.max() < 1e-5 * np.abs(EXPECTED["logits"]).max()


def test_the_tokenizer_is_the_one_beside(foreign):
    _, tokenizer = loaded(foreign)
    words = json.loads(next(foreign.glob("[ev]*co[db]*r.json"), foreign / "vocab.json").read_text())
    assert tokenizer.get_vocab() == words
    text = "the king and the queen\u2019s men, caf\u00e9\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text and len(ids) < len(text.encode())
    assert words["\u0120king"] in ids
    assert tokenizer.eos_token == tokenizer.pad_token == END_OF_TEXT


def test_each_can_be_exported_and_read_back(foreign, tmp_path):
    export(str(foreign), SourceArguments(), tmp_path / "plain")
    model, tokenizer = loaded(tmp_path / "plain")
    assert torch.equal(
        logits_of(model, EXPECTED["input_ids"]), logits_of(loaded(foreign)[0], EXPECTED["input_ids"])
    )
    assert tokenizer("the king")["input_ids"] == loaded(foreign)[1]("the king")["input_ids"]


def test_keras_in_half_precision_and_with_another_tokenizer(keras_folder, model_folder, bundle):
    model, tokenizer = loaded(keras_folder / "tf_model.h5", dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    (keras_folder / "vocab.json").unlink()
    assert "--tokenizer_name" in refused(keras_folder)
    export(str(bundle), SourceArguments(), bundle / "plain")
    assert loaded(keras_folder, tokenizer_name=str(bundle / "plain"))[1].get_vocab() == tokenizer.get_vocab()


def test_of_several_checkpoints_the_one_that_is_named_or_the_newest(bundle):
    assert tensorflow.find(bundle / "hparams.json") is None
    seven = bundle / "model-7.index"
    for file in (seven, bundle / "model-7.data-00000-of-00001"):
        assert tensorflow.find(file) == seven
        for number in (8, 10):
            shutil.copy(file, file.with_name(file.name.replace("7", str(number), 1)))
    (bundle / "other.index").touch()
    assert tensorflow.find(bundle) == seven
    for text, name in {
        'model_checkpoint_path: "/content/run1/model-8"\nall_model_checkpoint_paths: "model-10"': "model-8",
        'model_checkpoint_path: "C:\\\\run1\\\\model-8"': "model-8",
        'model_checkpoint_path: "model-99"': "model-10",
        'model_checkpoint_path: "../../etc/model-8"': "model-8",
        "\xff": "model-10",
        "": "model-10",
    }.items():
        (bundle / "checkpoint").write_text(text, encoding="latin-1")
        assert tensorflow.find(bundle).stem == name, text
    (bundle / "checkpoint").unlink()
    assert tensorflow.find(bundle).stem == "model-10"


def test_the_files_of_the_original_are_found_by_its_names(bundle):
    for path in [*bundle.glob("model-7*")]:
        path.rename(path.with_name(path.name.replace("model-7", "model.ckpt")))
    (bundle / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n')
    model, _ = loaded(bundle)
    assert np.abs(logits_of(model, EXPECTED["input_ids"]).numpy() - EXPECTED["logits"]).max() < 1e-4


def test_what_a_checkpoint_lacks_is_named(bundle):
    for name, words in {
        "encoder.json": "no tokenizer in .*--tokenizer_name",
        "hparams.json": "no model in .*hparams.json",
    }.items():
        content = (bundle / name).read_bytes()
        for damaged in (None, b"", b"{", b"[]", b'{"n_layer": 2}'):
            (bundle / name).unlink()
            if damaged is not None:
                (bundle / name).write_bytes(damaged)
            if name != "encoder.json" or damaged != b'{"n_layer": 2}':
                assert re.search(words, refused(bundle)), (name, damaged)
            (bundle / name).write_bytes(content)
    data = bundle / "model-7.data-00000-of-00001"
    shutil.move(data, bundle / "model-7.data-00001-of-00002")
    assert data.name in refused(bundle)


def test_sizes_that_are_not_those_of_the_tensors_name_one(bundle):
    sizes = json.loads((bundle / "hparams.json").read_text())
    for change, words in {
        ("n_ctx", 25): r"transformer.wpe.weight .*\[24, 16\].*\[25, 16\]",
        ("n_vocab", 9): r"transformer.wte.weight",
        ("n_layer", 3): r"lacks the tensor transformer\.h\.2\.",
        ("n_layer", 1): r"transformer\.h\.1\..*",
        ("n_head", 5): "16.*5",
        ("n_embd", "wide"): "wide|int",
    }.items():
        (bundle / "hparams.json").write_text(json.dumps({**sizes, change[0]: change[1]}))
        assert re.search(words, refused(bundle)), change


def test_a_data_file_that_is_cut_is_refused(bundle):
    data = bundle / "model-7.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-5000])
    message = refused(bundle)
    assert re.search(rf"{data.name} ends before its tensor transformer\.\S+ does; it is damaged", message)


def test_an_index_that_is_cut_or_changed_is_refused_or_changes_only_names(bundle):
    """Cut anywhere it is refused; of changed bytes none may end in anything but a model or one line."""
    index = bundle / "model-7.index"
    whole = index.read_bytes()
    for size in (0, 1, 7, 8, 47, 48, 100, len(whole) // 2, len(whole) - 1):
        index.write_bytes(whole[:size])
        assert str(index) in refused(bundle)
    index.write_bytes(whole[:-48] + b"\xff" * 40 + whole[-8:])
    assert "it is damaged, or not of TensorFlow" in refused(bundle)
    draw = np.random.default_rng(0)
    for place in draw.integers(0, len(whole), 200):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(draw.integers(8))
        index.write_bytes(bytes(changed))
        try:
            tensorflow._weights(index)
        except UsageError as error:
            assert "\n" not in str(error)


def test_the_table_has_the_names_that_were_saved():
    names = [key.decode() for key, _ in _table((FOREIGN / "tensorflow" / "model-7.index").read_bytes())]
    assert names == sorted(names) and names[0] == ""
    assert {"model/wte", "model/h1/mlp/c_proj/b/Adam_1", "beta1_power"} <= set(names)
    weights = tensorflow._weights(FOREIGN / "tensorflow" / "model-7.index")
    assert len(weights) == 2 + 2 * 12 + 2 and weights["transformer.h.0.attn.c_attn.weight"].shape == (16, 48)


def test_keras_weights_that_are_damaged_or_lead_elsewhere_are_refused(keras_folder):
    path = keras_folder / "tf_model.h5"
    whole = path.read_bytes()
    for content in (b"", whole[:10000], b"x" * 1000):
        path.write_bytes(content)
        assert refused(keras_folder).startswith(f"no model in {path}: ")
    secret = keras_folder / "secret"
    secret.write_bytes(bytes(4 * 16))
    name = "transformer/tfgpt2lm_head_model/transformer/ln_f/gamma:0"
    for options in (
        {"shape": (16,), "dtype": "f4", "external": [(str(secret), 0, h5py.h5f.UNLIMITED)]},
        {"shape": (1 << 40,), "dtype": "f4", "chunks": (1 << 10,)},
    ):
        path.write_bytes(whole)
        with h5py.File(path, "r+") as file:
            del file[name]
            file.create_dataset(name, **options)
        assert f"the numbers of {name} are not in it" in refused(keras_folder)
    for link in (h5py.ExternalLink(str(secret), "/x"), h5py.SoftLink("/x")):
        with h5py.File(path, "r+") as file:
            del file[name]
            file[name] = link
        assert "lacks the tensor transformer.ln_f.weight" in refused(keras_folder)


def test_keras_says_what_it_cannot_do(keras_folder, model_folder, monkeypatch):
    config = json.loads((keras_folder / "config.json").read_text())
    (keras_folder / "config.json").write_text(json.dumps({**config, "n_positions": 25}))
    assert re.search(r"transformer.wpe.weight is \[24, 16\], .*\[25, 16\]", refused(keras_folder))
    (keras_folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert "is a llama model" in refused(keras_folder)
    (keras_folder / "config.json").unlink()
    assert "config" in refused(keras_folder)
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    assert "pip install h5py" in refused(keras_folder, config_name=str(model_folder))


# --- nanoGPT


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width, bias), nn.Linear(width, width, bias)

    def forward(self, x):
        q, k, v = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in self.c_attn(x).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(mixed.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=bias), nn.LayerNorm(width, bias=bias)
        self.attn = Attention(width, heads, bias)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width, bias), "c_proj": nn.Linear(4 * width, width, bias)}
        )

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class NanoGPT(nn.Module):
    """The model that nanoGPT's ckpt.pt is of."""

    def __init__(self, vocab_size: int, width=32, heads=2, layers=2, block_size=16, bias=False, tied=True):
        super().__init__()
        self.args = {
            "n_layer": layers, "n_head": heads, "n_embd": width, "block_size": block_size, "bias": bias,
            "vocab_size": vocab_size, "dropout": 0.2,
        }  # fmt: skip
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab_size, width),
                "wpe": nn.Embedding(block_size, width),
                "h": nn.ModuleList(Block(width, heads, bias) for _ in range(layers)),
                "ln_f": nn.LayerNorm(width, bias=bias),
            }
        )
        self.lm_head = nn.Linear(width, vocab_size, bias=False)
        if tied:
            self.lm_head.weight = self.transformer["wte"].weight
        for parameter in self.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))

    @torch.no_grad()
    def forward(self, ids):
        x = self.transformer["wte"](ids) + self.transformer["wpe"].weight[: ids.shape[1]]
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


def save(model: NanoGPT, out: Path, prefix: str = "", changes: dict | None = None) -> Path:
    """What nanoGPT's train.py saves, with an optimizer that has taken a step."""
    out.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    content = {
        "model": {prefix + name: tensor for name, tensor in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": model.args,
        "iter_num": 10,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "plays_char", "out_dir": out.name, "compile": bool(prefix)},
    }
    torch.save({**content, **(changes or {})}, out / "ckpt.pt")
    return out


def save_meta(path: Path, characters: str = CHARACTERS) -> Path:
    stoi = {character: number for number, character in enumerate(characters)}
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = {"vocab_size": len(stoi), "itos": {n: c for c, n in stoi.items()}, "stoi": stoi}
    path.write_bytes(pickle.dumps(meta))
    return path


@pytest.fixture
def nano(tmp_path) -> tuple[NanoGPT, Path]:
    """(the model, its out directory, with meta.pkl where nanoGPT keeps it)."""
    torch.manual_seed(1)
    model = NanoGPT(len(CHARACTERS)).eval()
    save_meta(tmp_path / "data" / "plays_char" / "meta.pkl")
    return model, save(model, tmp_path / "out-plays")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_the_logits_are_those_of_nanogpt(tmp_path, bias, tied, prefix):
    model = NanoGPT(len(CHARACTERS), bias=bias, tied=tied).eval()
    out = save(model, tmp_path / "out", prefix)
    save_meta(out / "meta.pkl")
    ours, _ = loaded(out)
    assert not ours.training and ours.config.resid_pdrop == 0.2 and ours.config.n_positions == 16
    assert (ours.lm_head.weight is ours.transformer.wte.weight) == tied
    ids = torch.randint(0, len(CHARACTERS), (3, 16))
    expected = model(ids)
    # The last column is of the token that is added.
    assert (logits_of(ours, ids)[..., :-1] - expected).abs().max() < 1e-5 * expected.abs().max()
    assert logits_of(ours, ids).shape[-1] == len(CHARACTERS) + 1


def test_the_ids_are_those_of_stoi_and_the_text_comes_back(nano):
    _, tokenizer = loaded(nano[1])
    text = "a b!\n\n  c\u00e9\U0001f600'd\n"
    assert tokenizer(text)["input_ids"] == [CHARACTERS.index(character) for character in text]
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert tokenizer.eos_token == tokenizer.pad_token == tokenizer.bos_token == END_OF_TEXT
    assert tokenizer("aXb")["input_ids"] == [4, len(CHARACTERS), 5]  # X is none of its characters


def test_a_text_without_a_prompt_starts_as_at_a_line_break_and_never_ends(nano):
    model, tokenizer = loaded(nano[1])
    end, line_break = tokenizer.eos_token_id, CHARACTERS.index("\n")
    ids = torch.tensor([[end, 5, 6], [line_break, 5, 6]])
    first, second = logits_of(model, ids)
    assert torch.equal(first, second)
    # A model that would end at once: nothing is likelier than a line break, and the added token is as likely.
    weight = model.lm_head.weight.data
    weight[end] = weight[line_break] = 100 * logits_hidden(model, ids)[0, 0]
    for settings in (
        SamplingSettings(max_new_tokens=40, temperature=1.0),
        SamplingSettings(max_new_tokens=40, temperature=0),
    ):
        for _, text in write_texts(model, tokenizer, ["", "a", "ab"], settings):
            assert len(text) == 40 and set(text) <= set(CHARACTERS)
    assert end not in model.generate(ids[:1, :1], max_new_tokens=12, do_sample=True)[0, 1:]


@torch.no_grad()
def logits_hidden(model, ids) -> torch.Tensor:
    return model.transformer(ids).last_hidden_state


def test_an_exported_nanogpt_writes_the_same(nano, tmp_path):
    export(str(nano[1]), SourceArguments(), tmp_path / "plain")
    settings = SamplingSettings(max_new_tokens=30)
    texts = [
        [text for _, text in write_texts(*loaded(path), ["", "abc"], settings)]
        for path in (nano[1], tmp_path / "plain")
    ]
    assert texts[0] == texts[1] and loaded(tmp_path / "plain")[0].generation_config.suppress_tokens == [32]


@pytest.mark.slow
def test_an_exported_nanogpt_can_be_trained(nano, tmp_path, train):
    export(str(nano[1]), SourceArguments(), tmp_path / "plain")
    start = ("--model_name_or_path", str(tmp_path / "plain"), "--block_size", "16")
    run = train("run", *start, "--max_train_steps", "2", tiny=False)
    assert (run / "model.safetensors").is_file()


@pytest.mark.parametrize("place", ["{out}", "{out}/../data/plays_char", "{out}/../../data/plays_char"])
def test_meta_is_looked_for_where_nanogpt_keeps_it(tmp_path, place):
    out = save(NanoGPT(len(CHARACTERS)), tmp_path / "runs" / "out")
    assert "--tokenizer_name" in refused(out)
    save_meta(Path(place.format(out=out)) / "meta.pkl")
    for path in (out, out / "ckpt.pt"):
        assert loaded(path)[1]("ab")["input_ids"] == [4, 5]


def test_a_tokenizer_can_be_given(nano, tmp_path, model_folder):
    other = save_meta(tmp_path / "elsewhere" / "meta.pkl", CHARACTERS[::-1])
    assert loaded(nano[1], tokenizer_name=str(other))[1]("a")["input_ids"] == [len(CHARACTERS) - 5]
    assert "do not belong together" in refused(nano[1], tokenizer_name=str(model_folder))
    (tmp_path / "data" / "plays_char" / "meta.pkl").unlink()
    assert (
        loaded(save(NanoGPT(400), tmp_path / "big"), tokenizer_name=str(model_folder))[0].config.vocab_size
        == 400
    )


@pytest.mark.parametrize("words", [50257, 50304])
def test_without_meta_the_words_are_those_of_gpt2(tmp_path, words, bundle, monkeypatch):
    model = NanoGPT(words, width=2, heads=1, layers=1).eval()
    out = save(model, tmp_path / "out")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    assert "gpt2 from the hub with --tokenizer_name" in refused(out)
    export(str(bundle), SourceArguments(), tmp_path / "bpe")
    ours, tokenizer = loaded(out, tokenizer_name=str(tmp_path / "bpe"))
    assert ours.config.vocab_size == words and ours.config.eos_token_id == tokenizer.eos_token_id
    ids = torch.tensor([[0, 50256, words - 1]])
    assert (logits_of(ours, ids) - model(ids)).abs().max() < 1e-5 * model(ids).abs().max()
    assert ours.generation_config.suppress_tokens is None


@pytest.mark.parametrize("form", FORMS)
def test_row_14_a_pickle_planted_in_the_place_of_nanogpts_files_never_runs(nano, tmp_path, form):
    out = nano[1]
    for path in (tmp_path / "data" / "plays_char" / "meta.pkl", out / "ckpt.pt"):
        plant(path, tmp_path / "marker", form)
        message = refused(out)
        assert str(path) in message and (
            "could run code" in message or form != "pickle" or path.suffix == ".pkl"
        )
        assert not (tmp_path / "marker").exists()


def test_damaged_files_of_nanogpt_are_refused(nano, tmp_path):
    model, out = nano
    whole = (out / "ckpt.pt").read_bytes()
    for content in (b"", whole[:1000], whole[: len(whole) // 2], b"x" * 1000):
        (out / "ckpt.pt").write_bytes(content)
        assert refused(out).startswith(f"no model in {out / 'ckpt.pt'}: it is damaged")
    tensors = model.state_dict()
    for changes, words in (
        ({"model_args": None}, "a checkpoint of nanoGPT has"),
        ({"model": 3}, "a checkpoint of nanoGPT has"),
        ({"model_args": {**model.args, "n_layer": None}}, "a checkpoint of nanoGPT has"),
        ({"model": {"transformer.wte.weight": torch.tensor(1.0)}}, "no model in"),
        ({"model": {**tensors, "transformer.rope": torch.ones(2)}}, "transformer.rope"),
        ({"model_args": {**model.args, "n_layer": 3}}, r"lacks the tensor transformer\.h\.2\."),
        ({"model_args": {**model.args, "block_size": 8}}, r"transformer.wpe.weight is \[16, 32\]"),
        ({"model_args": {**model.args, "vocab_size": 90}}, "transformer.wte.weight|lm_head.weight"),
        ({"model_args": {**model.args, "n_head": 5}}, "32.*5"),
    ):
        save(model, out, changes=changes)
        assert re.search(words, refused(out)), changes
    torch.save([1], out / "ckpt.pt")
    assert "a checkpoint of nanoGPT has" in refused(out)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x80\x04", pickle.dumps(3), pickle.dumps({"stoi": 3}), pickle.dumps({"stoi": {"ab": 1}}),
        pickle.dumps({"stoi": {"a": 400}}), pickle.dumps({"stoi": {"a": -1}}), pickle.dumps({"stoi": {"a": "b"}}),
        pickle.dumps({"stoi": {"\ud800": 1}}), pickle.dumps({"stoi": {3: 1}}), pickle.dumps(Path("a")),
    ],
)  # fmt: skip
def test_a_meta_that_holds_no_characters_is_refused(nano, tmp_path, content):
    path = tmp_path / "data" / "plays_char" / "meta.pkl"
    path.write_bytes(content)
    assert str(path) in refused(nano[1])


def test_only_files_of_their_format_are_found(tmp_path, model_folder):
    for format_ in (keras, nanogpt, tensorflow):
        assert format_.find(tmp_path) is None and format_.find(model_folder) is None
        assert format_.find(model_folder / "model.safetensors") is None
