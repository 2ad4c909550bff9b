"""The model: its loss against plain logits, its parameter groups, building it from nothing and loading it."""

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from stylegen.blocks import IGNORED
from stylegen.config import UsageError
from stylegen.loss import LanguageModelLoss
from stylegen.model import (
    build_model,
    context_length,
    default_block_size,
    fit_embedding,
    load_config,
    load_model,
    num_parameters,
    parameter_groups,
    save_model,
    scratch_config,
)
from stylegen.tokenizer import train_tokenizer

VOCABULARY = 300
LOADING = {"revision": None, "dtype": "float32", "attn_implementation": None}
BUILDING = {"dtype": "float32", "attn_implementation": None}
# Each architecture's names for two layers, two heads, 32 wide.
TINY = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 32},
    "llama": {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 48},
}
# Their defaults have more key and value heads than two.
TINY |= {name: {**TINY["llama"], "num_key_value_heads": 1} for name in ("qwen2", "qwen3", "mistral")}
both = pytest.mark.parametrize("architecture", ["gpt2", "llama"])


def config_of(architecture: str, **changes):
    """A tiny configuration made by Transformers alone; GPT-2 with its tied head, Llama with one of its own."""
    own = {
        "gpt2": {"n_positions": 24, "bos_token_id": 0, "eos_token_id": 0},
        "llama": {"max_position_embeddings": 24, "num_key_value_heads": 1},
    }[architecture]
    values = {"vocab_size": VOCABULARY, **TINY[architecture], **own, **changes}
    return {"gpt2": GPT2Config, "llama": LlamaConfig}[architecture](**values)


def model_of(architecture: str, **changes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config_of(architecture, **changes), dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer("char", [["the king speaks\n"]], 0, None, "none")


@pytest.fixture
def batch():
    """Input ids and labels (3, 12): the end of one row is ignored, and one row altogether."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (3, 13), generator=generator)
    labels = ids[:, 1:].clone()
    labels[0, 8:] = IGNORED
    labels[2] = IGNORED
    return ids[:, :-1], labels


# The loss


@both
def test_the_loss_is_the_sum_over_the_labels_that_count(architecture, batch):
    model = model_of(architecture).eval()
    input_ids, labels = batch
    with torch.no_grad():
        loss, correct = LanguageModelLoss(model).eval()(input_ids=input_ids, labels=labels)
        logits = model(input_ids=input_ids).logits.double()
    expected_loss, expected_correct = 0.0, 0
    for row in range(labels.shape[0]):
        for position in range(labels.shape[1]):
            if (label := int(labels[row, position])) != IGNORED:
                scores = logits[row, position]
                expected_loss += float(torch.logsumexp(scores, 0) - scores[label])
                expected_correct += int(scores.argmax()) == label
    assert loss.item() == pytest.approx(expected_loss, rel=1e-6)
    assert correct.item() == expected_correct


@both
def test_right_guesses_are_counted(architecture, batch):
    model = model_of(architecture).eval()
    input_ids, labels = batch
    with torch.no_grad():
        guesses = model(input_ids=input_ids).logits.argmax(-1)
        _, correct = LanguageModelLoss(model).eval()(
            input_ids, torch.where(labels == IGNORED, IGNORED, guesses)
        )
    assert correct.item() == int((labels != IGNORED).sum()) == 8 + 12


@both
def test_ignored_labels_change_neither_loss_nor_gradient(architecture, batch):
    input_ids, labels = batch
    results = []
    for rows in (slice(0, 2), slice(0, 3)):  # without and with the row that is ignored altogether
        model = model_of(architecture).eval()
        loss, correct = LanguageModelLoss(model).eval()(input_ids[rows], labels[rows])
        loss.backward()
        results.append((loss.item(), correct.item(), [parameter.grad for parameter in model.parameters()]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert results[0][1] == results[1][1]
    torch.testing.assert_close(results[0][2], results[1][2])


@both
def test_a_block_that_is_ignored_altogether_gives_zero_and_no_gradient(architecture, batch):
    """What a rank without a share runs: a mean would be nan."""
    model = model_of(architecture).eval()
    loss, correct = LanguageModelLoss(model).eval()(batch[0], torch.full_like(batch[1], IGNORED))
    loss.backward()
    assert loss.item() == 0.0
    assert correct.item() == 0
    assert all(not parameter.grad.any() for parameter in model.parameters())


@both
def test_the_gradient_is_that_of_transformers_own_loss(architecture, batch):
    """Its loss shifts the labels itself and so has one fewer a block: ours with the last label ignored."""
    ids = batch[0]
    theirs, ours = model_of(architecture).eval(), model_of(architecture).eval()
    theirs(input_ids=ids, labels=ids).loss.backward()
    labels = torch.cat([ids[:, 1:], torch.full((len(ids), 1), IGNORED)], dim=1)
    loss, _ = LanguageModelLoss(ours).eval()(ids, labels)
    (loss / (labels != IGNORED).sum()).backward()
    for (name, expected), (_, found) in zip(theirs.named_parameters(), ours.named_parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-7, msg=name)


@both
def test_the_loss_of_a_batch_is_that_of_its_rows(architecture, batch):
    module = LanguageModelLoss(model_of(architecture)).eval()
    with torch.no_grad():
        together = module(*batch)
        alone = [module(ids[None], labels[None]) for ids, labels in zip(*batch, strict=True)]
    assert together[0].item() == pytest.approx(sum(loss.item() for loss, _ in alone), rel=1e-6)
    assert together[1].item() == sum(correct.item() for _, correct in alone)


def test_the_loss_of_a_bfloat16_model_is_summed_in_float32(batch):
    model = model_of("gpt2").to(torch.bfloat16).eval()
    with torch.no_grad():
        loss, _ = LanguageModelLoss(model).eval()(*batch)
        logits = model(input_ids=batch[0]).logits.float()
    assert loss.dtype == torch.float32
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), batch[1].flatten(), reduction="sum")
    assert loss.item() == expected.item()


# Parameter groups


def group_of_each(model, weight_decay=0.1):
    """parameter name -> (group name, weight decay); fails on a parameter in two groups or none."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in parameter_groups(model, weight_decay):
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = (group["name"], group["weight_decay"])
    return found


@pytest.mark.parametrize(
    ("architecture", "tied"), [("gpt2", True), ("gpt2", False), ("llama", True), ("llama", False)]
)
def test_norms_biases_and_embeddings_are_not_decayed(architecture, tied):
    model = model_of(architecture, tie_word_embeddings=tied)
    expected = {}
    for name, _ in model.named_parameters():
        if any(part in name for part in ("wte", "wpe", "embed_tokens", "lm_head")):
            expected[name] = ("embeddings", 0.0)
        elif name.endswith(".bias") or "norm" in name or ".ln_" in name:
            expected[name] = ("vectors", 0.0)
        else:
            expected[name] = ("matrices", 0.1)
    assert group_of_each(model) == expected
    assert ("lm_head.weight" in expected) is not tied
    assert {group for group, _ in expected.values()} == {"matrices", "embeddings", "vectors"}


@both
def test_frozen_parameters_are_in_no_group(architecture):
    model = model_of(architecture)
    frozen = [name for name, _ in model.named_parameters()][::2]
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name not in frozen
    assert set(group_of_each(model)) == {name for name, p in model.named_parameters() if p.requires_grad}


def test_a_group_without_parameters_is_left_out():
    """torch's optimizers refuse an empty one."""
    model = nn.Linear(3, 4, bias=False)
    assert [group["name"] for group in parameter_groups(model, 0.1)] == ["matrices"]


def test_tied_parameters_are_counted_once():
    body = num_parameters(model_of("gpt2")) - VOCABULARY * 32
    assert num_parameters(model_of("gpt2", tie_word_embeddings=False)) == body + 2 * VOCABULARY * 32


# From scratch


@both
def test_a_new_model_has_a_position_for_each_token_of_a_block(architecture, tokenizer):
    config = scratch_config(architecture, None, TINY[architecture], block_size=17)
    assert context_length(build_model(config, tokenizer, **BUILDING)) == 17


@pytest.mark.parametrize(
    ("architecture", "key"),
    [("gpt2", "n_positions"), ("gpt2", "max_position_embeddings"), ("llama", "max_position_embeddings")],
)
def test_positions_asked_for_are_kept(architecture, key, tokenizer):
    config = scratch_config(architecture, None, {**TINY[architecture], key: 40}, block_size=17)
    assert context_length(build_model(config, tokenizer, **BUILDING)) == 40


def test_without_a_block_size_the_architecture_decides():
    assert scratch_config("gpt2", None, {}, None).n_positions == GPT2Config().n_positions


def test_a_configuration_from_a_folder_keeps_its_positions_and_takes_the_overrides(tmp_path):
    config_of("gpt2").save_pretrained(tmp_path)
    config = scratch_config(None, str(tmp_path), {"n_layer": 3}, block_size=17)
    assert (config.model_type, config.n_positions, config.n_layer, config.n_embd) == ("gpt2", 24, 3, 32)


@pytest.mark.parametrize("architecture", TINY)
@pytest.mark.parametrize("num_layers", [2, 40])
def test_what_a_configuration_derives_follows_the_overrides(architecture, num_layers):
    """Key and value heads, the width of a head and the kinds of the layers come from values that are overridden."""
    overrides = {
        **TINY[architecture],
        "n_layer" if architecture == "gpt2" else "num_hidden_layers": num_layers,
    }
    config = scratch_config(architecture, None, overrides, block_size=16)
    derived = type(config)(**overrides)
    for key in ("num_key_value_heads", "head_dim", "layer_types"):
        assert getattr(config, key, None) == getattr(derived, key, None)


@pytest.mark.parametrize("architecture", TINY)
def test_a_small_model_of_any_architecture_computes(architecture, tokenizer):
    config = scratch_config(architecture, None, TINY[architecture], block_size=16)
    model = build_model(config, tokenizer, **BUILDING)
    with torch.no_grad():
        logits = model(input_ids=torch.arange(16)[None]).logits
    assert logits.shape == (1, 16, len(tokenizer))


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "mistral"])
def test_heads_that_do_not_share_out_are_refused(architecture, tokenizer):
    """The defaults have 32 or 8 key and value heads: two heads could not even make the first step."""
    with pytest.raises(UsageError, match="num_key_value_heads"):
        build_model(scratch_config(architecture, None, TINY["llama"], 16), tokenizer, **BUILDING)


@both
def test_an_unknown_override_is_refused(architecture):
    message = f"^config_overrides names n_layers, which a {architecture} configuration does not have$"
    with pytest.raises(UsageError, match=message):
        scratch_config(architecture, None, {"n_layers": 4}, None)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"n_layer": "four"}, "n_layer.*expected int, got str"),
        ({"n_head": 3}, "divisible by num_heads"),
        ({"activation_function": "no such"}, "no such"),
    ],
)
def test_an_override_that_cannot_be_built_is_refused_with_the_reason(overrides, reason, tokenizer):
    with pytest.raises(UsageError, match=f"gpt2.*{reason}"):
        build_model(scratch_config("gpt2", None, TINY["gpt2"] | overrides, 16), tokenizer, **BUILDING)


def test_an_unknown_architecture_is_refused():
    message = r"^model_type gtp2 is not known to transformers; for example gpt2, llama, qwen2, gpt_neox$"
    with pytest.raises(UsageError, match=message):
        scratch_config("gtp2", None, {}, None)


def test_an_unknown_attention_is_refused(tokenizer):
    config = scratch_config("gpt2", None, TINY["gpt2"], 16)
    with pytest.raises(UsageError, match=r"^a gpt2 model cannot be built so: .*no such attention"):
        build_model(config, tokenizer, dtype="float32", attn_implementation="no such attention")


@both
def test_a_new_model_has_a_row_for_each_word_and_no_more(architecture, tokenizer):
    model = build_model(config_of(architecture), tokenizer, **BUILDING)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) < VOCABULARY
    assert model.get_output_embeddings().weight.shape[0] == len(tokenizer)
    assert model.config.vocab_size == len(tokenizer)
    assert {model.config.bos_token_id, model.config.eos_token_id} == {tokenizer.eos_token_id}
    assert model.config.pad_token_id is None  # <|endoftext|> pads too, and has to be trained as a word


def test_a_new_model_has_a_row_for_each_id_where_ids_leave_gaps():
    backend = Tokenizer(models.BPE(vocab={"<|endoftext|>": 0, "a": 1, "b": 9}, merges=[]))
    gaps = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    assert build_model(config_of("gpt2"), gaps, **BUILDING).get_input_embeddings().weight.shape[0] == 10


@both
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_new_model_has_the_type_asked_for(architecture, dtype, tokenizer):
    model = build_model(config_of(architecture), tokenizer, dtype=dtype, attn_implementation=None)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


@both
def test_the_end_of_text_is_learnt_like_any_word(architecture, tokenizer):
    """It also pads, and torch gives the row of a padding index neither a start nor a gradient."""
    model = build_model(config_of(architecture, tie_word_embeddings=False), tokenizer, **BUILDING)
    ids = torch.tensor([[5, tokenizer.eos_token_id, 6, 7]])
    loss, _ = LanguageModelLoss(model).eval()(ids, ids)
    loss.backward()
    embedding = model.get_input_embeddings().weight
    assert embedding[tokenizer.eos_token_id].any()
    assert embedding.grad[tokenizer.eos_token_id].any()


@pytest.mark.parametrize(("positions", "asked", "expected"), [
    (None, None, 1024), (512, None, 512), (4096, None, 1024), (None, 2048, 2048), (512, 128, 128), (512, 512, 512),
])  # fmt: skip
def test_the_block_size_is_what_the_model_attends_to_at_most_1024(positions, asked, expected):
    assert default_block_size(positions, asked) == expected


def test_a_block_longer_than_the_positions_is_refused():
    with pytest.raises(
        UsageError,
        match=r"^block_size is 513, but the model has 512 positions; use --block_size 512 or less$",
    ):
        default_block_size(512, 513)


# Loading


@both
def test_a_bfloat16_checkpoint_is_loaded_as_float32(architecture, tmp_path):
    """Transformers would keep the type of the file, and all of training would lose its small updates."""
    saved = model_of(architecture).to(torch.bfloat16)
    saved.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), **LOADING)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    expected = saved.state_dict()
    assert all(torch.equal(value, expected[name].float()) for name, value in loaded.state_dict().items())


@both
def test_a_loaded_model_learns_the_end_of_text_too(architecture, tmp_path):
    """Many published models pad with it, SmolLM2 among them; between documents it is a word to learn."""
    model_of(architecture, eos_token_id=2, pad_token_id=2, tie_word_embeddings=False).save_pretrained(
        tmp_path
    )
    model = load_model(str(tmp_path), **LOADING)
    ids = torch.tensor([[5, 2, 6, 7]])
    LanguageModelLoss(model)(ids, ids)[0].backward()
    assert model.get_input_embeddings().weight.grad[2].any()


@both
def test_a_saved_model_comes_back_with_its_tokenizer(architecture, tokenizer, tmp_path):
    model = build_model(config_of(architecture), tokenizer, **BUILDING).eval()
    save_model(model, tokenizer, tmp_path)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(load_model(str(tmp_path), **LOADING).eval()(ids).logits, model(ids).logits)
    assert load_config(str(tmp_path)).model_type == architecture
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in tmp_path.iterdir()
    }


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(
        UsageError, match=f"^no model configuration in {tmp_path} .*; give a folder with config.json"
    ):
        load_config(str(tmp_path))
    with pytest.raises(UsageError, match=f"^no model in {tmp_path}: "):
        load_model(str(tmp_path), **LOADING)


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"^no model configuration in .*nowhere"):
        load_config(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"^no model in .*nowhere: "):
        load_model(str(tmp_path / "nowhere"), **LOADING)


def test_a_configuration_without_weights_is_refused(tmp_path):
    config_of("gpt2").save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=f"^no model in {tmp_path}: .*model.safetensors"):
        load_model(str(tmp_path), **LOADING)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_file_of_a_model_is_refused(name, tmp_path):
    model_of("gpt2").save_pretrained(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UsageError, match=f"^no model in {tmp_path}: "):
        load_model(str(tmp_path), **LOADING)


# Words that the model has not


@both
def test_words_that_the_model_lacks_get_rows_and_the_old_ones_stay(architecture, tokenizer):
    model = model_of(architecture, vocab_size=len(tokenizer) - 3).eval()
    ids = torch.arange(8)[None]
    with torch.no_grad():
        before = model(ids).logits
        fit_embedding(model, tokenizer)
        after = model(ids).logits
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    assert model.get_output_embeddings().weight.shape[0] == model.config.vocab_size == len(tokenizer)
    torch.testing.assert_close(after[..., :-3], before)


@both
@pytest.mark.parametrize("spare", [0, 10])
def test_rows_that_no_word_has_are_kept(architecture, spare, tokenizer):
    """Models are published with a vocabulary rounded up."""
    model = model_of(architecture, vocab_size=len(tokenizer) + spare)
    before = model.get_input_embeddings().weight.detach().clone()
    fit_embedding(model, tokenizer)
    assert before.shape[0] == len(tokenizer) + spare
    assert torch.equal(model.get_input_embeddings().weight, before)


# How far a model sees


@both
def test_the_context_is_that_of_the_configuration(architecture):
    assert context_length(model_of(architecture)) == 24


def test_a_model_without_positions_has_no_limit(tokenizer):
    config = scratch_config("mamba", None, {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}, 16)
    assert context_length(build_model(config, tokenizer, **BUILDING)) is None
