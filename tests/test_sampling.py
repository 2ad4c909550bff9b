"""Writing: every text against plain transformers, an exact expectation, or the distribution it must follow.

Two kinds of model: tiny random ones, whose logits depend on everything before; and GPT-2s with hand-set weights,
whose next token is known (`chain`) or whose distribution is the same everywhere (`urn`).
"""

import logging
import random
import string
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_text
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicLayer
from transformers.generation import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.pytorch_utils import Conv1D

from stylegen.config import UsageError
from stylegen.model import build_model, scratch_config
from stylegen.sampling import SamplingSettings, prompt_ids, warn_of_long_prompts, write_texts
from stylegen.sampling.decode import Decoder, _RoomyLayer
from stylegen.sampling.draw import NUCLEUS_TOKENS, draw, limit
from stylegen.sampling.kernels import _attention, can_pack, decoding_attention, pack_weights
from stylegen.tokenizer import END_OF_TEXT, train_tokenizer

CONTEXT = 32
# Beyond the initial 0.02 the logits of an untrained model differ enough for the prompt to matter.
RANDOM_WEIGHTS = {"initializer_range": 0.3}
ARCHITECTURES = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 32},
    "llama": {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
    },
}
PROMPTS = ["the king", "n", "", "Good night, sweet lady", "O"]


@pytest.fixture(scope="module")
def tokenizer():
    """One token a letter and nothing else, so that a text shows every token that was written."""
    words = [END_OF_TEXT, *sorted(set(make_text(200) + string.ascii_letters))]
    backend = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    backend.decoder = decoders.Fuse()
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.fixture(scope="module")
def char_tokenizer():
    """Characters, and bytes for those that the text did not have."""
    return train_tokenizer("char", [["a"]], 0, None, "none")


@pytest.fixture(scope="module")
def byte_tokenizer():
    """Byte-level BPE without a single merge: every byte is a token."""
    return train_tokenizer("bpe", [["a"]], 0, 257, "none")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request, tokenizer):
    torch.manual_seed(1)
    config = scratch_config(
        request.param, None, ARCHITECTURES[request.param] | RANDOM_WEIGHTS, block_size=CONTEXT
    )
    return build_model(config, tokenizer, dtype="float32", attn_implementation=None).eval()


@pytest.fixture
def warnings(caplog, monkeypatch):
    """Messages of the logger, which does not hand them on once a command has started it."""
    logger = logging.getLogger("stylegen")
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def blank_gpt2(tokenizer, width: int, positions: int) -> GPT2LMHeadModel:
    """A GPT-2 of zeros only: without blocks, positions or biases, to be given the weights that a test wants."""
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=positions, n_embd=width, n_layer=1, n_head=1,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    blank = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in blank.parameters():
            parameter.zero_()
    return blank


def chain(tokenizer, following: dict[int, int], positions: int = CONTEXT) -> GPT2LMHeadModel:
    """A model that is sure of the next token: `following[id]`. One-hot embeddings, a table as the output layer."""
    made = blank_gpt2(tokenizer, len(tokenizer), positions)
    with torch.no_grad():
        made.transformer.wte.weight.copy_(torch.eye(len(tokenizer)))
        made.transformer.ln_f.weight.fill_(1.0)
        for before, after in following.items():
            made.lm_head.weight[after, before] = 10.0
    return made


def urn(tokenizer, logits: dict[int, float], positions: int = CONTEXT) -> GPT2LMHeadModel:
    """A model with the same logits at every place, whatever was there before; all others are out of reach."""
    made = blank_gpt2(tokenizer, 2, positions)
    with torch.no_grad():
        made.transformer.ln_f.bias[0] = 1.0
        made.lm_head.weight[:, 0] = -1e4
        for token, logit in logits.items():
            made.lm_head.weight[token, 0] = logit
    return made


def circle(ids: list[int]) -> dict[int, int]:
    """Each id is followed by the next one, the last by the first."""
    return dict(zip(ids, [*ids[1:], ids[0]], strict=True))


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


def continuations(model, tokenizer, prompts, settings, **options) -> list[str]:
    return [text for _, text in write_texts(model, tokenizer, prompts, settings, **options)]


def differing(texts: list[str], expected: list[str]) -> list[int]:
    """Numbers of the texts that are not as expected: pytest takes minutes to compare noise letter by letter."""
    return [n for n, (one, other) in enumerate(zip(texts, expected, strict=True)) if one != other]


def plain_generate(model, tokenizer, prompt: str, count: int, **options) -> list[str]:
    """What transformers alone writes after one prompt, with no padding."""
    ids = torch.tensor([ids_of(tokenizer, prompt) or [tokenizer.bos_token_id]])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, **options
    )
    return tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)


def even_draws(count: int) -> torch.Tensor:
    """Numbers spread evenly over [0, 1), one a row: the counts of a draw are then its probabilities, +- rounding."""
    return (torch.arange(count) + 0.5) / count


def drawn_counts(settings: SamplingSettings, logits: torch.Tensor, numbers: torch.Tensor) -> np.ndarray:
    """How often each token is drawn when every one of `numbers` meets the same logits."""
    scores = limit(logits / settings.temperature, settings).repeat(len(numbers), 1)
    return np.bincount(draw(scores, numbers)[0].numpy(), minlength=logits.shape[-1])


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    expected = counts.sum() * probabilities
    return float(((counts - expected) ** 2 / expected).sum())


# --- the same texts, whatever stands around them


def test_a_seed_decides_the_texts(model, tokenizer):
    def write(seed):
        return continuations(model, tokenizer, PROMPTS, SamplingSettings(max_new_tokens=20, seed=seed))

    assert write(7) == write(7)
    assert all(one != other for one, other in zip(write(7), write(8), strict=True))


def test_the_texts_of_one_prompt_differ_and_come_in_order(model, tokenizer):
    settings = SamplingSettings(max_new_tokens=20)
    pairs = list(write_texts(model, tokenizer, ["a", "b"], settings, num_return_sequences=3, batch_size=2))
    assert [prompt for prompt, _ in pairs] == ["a", "a", "a", "b", "b", "b"]
    assert len({text for _, text in pairs}) == 6


@pytest.mark.parametrize("max_new_tokens", [8, 45], ids=["within the context", "beyond the context"])
@pytest.mark.parametrize("batch_size", [3, 8])
def test_texts_do_not_depend_on_the_batch_size(model, tokenizer, batch_size, max_new_tokens):
    settings = SamplingSettings(max_new_tokens=max_new_tokens, temperature=1.0)
    one_by_one, together = (
        continuations(model, tokenizer, PROMPTS, settings, num_return_sequences=2, batch_size=size)
        for size in (1, batch_size)
    )
    assert differing(together, one_by_one) == []


@pytest.mark.parametrize("max_new_tokens", [8, 45], ids=["within the context", "beyond the context"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_does_not_depend_on_the_other_prompts(model, tokenizer, temperature, max_new_tokens):
    settings = SamplingSettings(max_new_tokens=max_new_tokens, temperature=temperature)
    (alone,) = continuations(model, tokenizer, ["n"], settings)
    beside_a_longer = continuations(model, tokenizer, ["n", "Good night, sweet lady"], settings)
    assert differing(beside_a_longer[:1], [alone]) == []


def test_a_text_of_a_given_number_can_be_written_alone(model, tokenizer):
    settings = SamplingSettings(max_new_tokens=20)
    together = continuations(model, tokenizer, ["a", "b", "c"], settings)
    assert continuations(model, tokenizer, ["c"], settings, first_number=2) == together[2:]


def test_a_longer_text_begins_as_the_shorter_one(model, tokenizer):
    short, long = (
        continuations(model, tokenizer, PROMPTS[:2], SamplingSettings(max_new_tokens=count))
        for count in (5, 20)
    )
    assert all(text.startswith(start) for text, start in zip(long, short, strict=True))


# --- the same as without a cache, a batch or our loop, whatever the architecture

LLAMA = ARCHITECTURES["llama"]
OTHERS = {  # name: (changes to its configuration, whether our own loop decodes it)
    "mistral": ({**LLAMA, "sliding_window": 8}, True),
    "gemma2": ({**LLAMA, "head_dim": 8, "sliding_window": 8}, True),
    "gpt_neox": ({name: LLAMA[name] for name in LLAMA if name != "num_key_value_heads"}, True),
    "bloom": ({"n_layer": 2, "n_head": 2, "hidden_size": 32}, True),
    "mamba": ({"num_hidden_layers": 2, "hidden_size": 32}, False),
}


def whole_passes(model, tokenizer, prompt: str, number: int, settings: SamplingSettings) -> str:
    """A text by one pass over all of it for each token, the warpers of transformers, and sums in float64."""
    ids = ids_of(tokenizer, prompt) or [tokenizer.bos_token_id]
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + number)
    numbers = torch.rand(settings.max_new_tokens, generator=generator, dtype=torch.float64)
    warpers = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(settings.repetition_penalty)])
    warpers.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        warpers.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        warpers.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        warpers.append(MinPLogitsWarper(settings.min_p))
    new: list[int] = []
    for number in numbers:
        seen = torch.tensor([ids + new])
        with torch.no_grad():
            scores = warpers(seen, model(input_ids=seen, use_cache=False).logits[:, -1].float())
        token = int(torch.searchsorted(scores[0].double().softmax(-1).cumsum(-1), number, right=True))
        if token == tokenizer.eos_token_id:
            break
        new.append(token)
    return tokenizer.decode(new)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *OTHERS])
@pytest.mark.parametrize(
    "options",
    [{}, {"top_p": 0.8, "temperature": 1.2}, {"top_k": 9, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.4}],
    ids=["plain", "nucleus", "everything"],
)  # fmt: skip
def test_a_drawn_text_is_that_of_whole_passes(tokenizer, architecture, options):
    torch.manual_seed(1)
    overrides, own = OTHERS[architecture] if architecture in OTHERS else (ARCHITECTURES[architecture], True)
    config = scratch_config(architecture, None, overrides | RANDOM_WEIGHTS, block_size=CONTEXT)
    made = build_model(config, tokenizer, dtype="float32", attn_implementation=None).eval()
    assert Decoder.takes(made) is own
    settings = SamplingSettings(max_new_tokens=9, seed=3, **options)
    texts = continuations(made, tokenizer, PROMPTS, settings, num_return_sequences=2, batch_size=7)
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    expected = [whole_passes(made, tokenizer, prompt, n, settings) for n, prompt in enumerate(prompts)]
    assert differing(texts, expected) == []


def test_a_prompt_is_read_once_for_all_its_texts(model, tokenizer):
    shapes = []
    hook = model.register_forward_pre_hook(
        lambda _, args, options: shapes.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    settings = SamplingSettings(max_new_tokens=4)
    texts = continuations(
        model, tokenizer, ["abc", "abcde", "abc"], settings, num_return_sequences=3, batch_size=9
    )
    hook.remove()
    assert shapes == [(2, 5), (9, 1), (9, 1), (9, 1)]
    alone = continuations(
        model, tokenizer, ["abc", "abcde", "abc"], settings, num_return_sequences=3, batch_size=1
    )
    assert differing(texts, alone) == []


def test_texts_that_have_ended_leave_the_batch(tokenizer):
    letters = ids_of(tokenizer, "abcdefgh")
    model = chain(tokenizer, dict(zip(letters, [*letters[1:], tokenizer.eos_token_id], strict=True)))
    sizes = []
    hook = model.register_forward_pre_hook(
        lambda _, args, options: sizes.append(len(options["input_ids"])), with_kwargs=True
    )
    texts = continuations(
        model, tokenizer, list("hgfa"), SamplingSettings(max_new_tokens=20, temperature=0.0)
    )
    hook.remove()
    assert texts == ["", "h", "gh", "bcdefgh"]
    assert sizes == [4, 4, 2, 1, 1, 1, 1, 1]


def test_keys_and_values_with_room_are_those_that_grow_by_copying():
    torch.manual_seed(0)
    roomy, plain = _RoomyLayer(), DynamicLayer()
    batch = 3
    for step in range(120):
        new = torch.randn(batch, 2, 5 if step == 0 else 1, 4), torch.randn(batch, 2, 5 if step == 0 else 1, 6)
        for ours, theirs in zip(roomy.update(*new), plain.update(*new), strict=True):
            assert torch.equal(ours, theirs)
        if step in (0, 40):
            rows = torch.tensor([2, 0, 0, 1] if step == 0 else [3, 1])
            batch = len(rows)
            roomy.batch_select_indices(rows)
            plain.batch_select_indices(rows)
        if step == 60:
            roomy.crop(-7)
            plain.crop(-7)
        assert roomy.get_seq_length() == plain.get_seq_length()


# --- greedy and beams, against transformers


def test_greedy_equals_transformers(model, tokenizer):
    settings = SamplingSettings(max_new_tokens=9, temperature=0.0)
    expected = [plain_generate(model, tokenizer, prompt, 9)[0] for prompt in PROMPTS]
    assert continuations(model, tokenizer, PROMPTS, settings) == expected


@pytest.mark.parametrize(
    "option",
    [
        {"do_sample": True, "temperature": 3.0},
        {"num_beams": 3},
        {"repetition_penalty": 9.0},
        {"max_length": 9},
        {"no_repeat_ngram_size": 1},
        {"min_new_tokens": 20},
    ],
    ids=lambda option: next(iter(option)),
)
def test_the_models_own_generation_config_changes_nothing(tokenizer, option):
    """A folder's generation_config.json may ask for anything; the settings are all that counts.

    But for tokens that are never to be written: a model without an end of text could else write one.
    """
    a, b, end = *ids_of(tokenizer, "ab"), tokenizer.eos_token_id
    model = chain(tokenizer, {a: b, b: b, end: a})
    settings = SamplingSettings(max_new_tokens=12, temperature=0.0)
    model.generation_config.update(**option)
    assert continuations(model, tokenizer, ["a"], settings) == ["b" * 12]
    ending = chain(tokenizer, {a: b, b: end, end: a})
    ending.generation_config = model.generation_config
    assert continuations(ending, tokenizer, ["a"], settings) == ["b"]
    ending.generation_config.suppress_tokens = [end]
    (goes_on,) = continuations(ending, tokenizer, ["a"], settings)
    assert goes_on.startswith("b") and len(goes_on) > 1


@pytest.mark.parametrize("num_return_sequences", [1, 3])
def test_beam_search_equals_transformers(model, tokenizer, num_return_sequences):
    settings = SamplingSettings(max_new_tokens=9, temperature=0.0, num_beams=3)
    prompts = [prompt for prompt in PROMPTS for _ in range(num_return_sequences)]
    expected = [
        (prompt, text)
        for prompt in PROMPTS
        for text in plain_generate(
            model, tokenizer, prompt, 9, num_beams=3, num_return_sequences=num_return_sequences
        )
    ]
    pairs = list(write_texts(model, tokenizer, PROMPTS, settings, num_return_sequences=num_return_sequences))
    assert [prompt for prompt, _ in pairs] == prompts
    assert pairs == expected


def test_beam_search_goes_as_far_as_the_context_reaches(tokenizer):
    model = chain(tokenizer, circle(ids_of(tokenizer, "abcdefg")))
    settings = SamplingSettings(max_new_tokens=100, temperature=0.0, num_beams=2)
    (text,) = continuations(model, tokenizer, ["abc"], settings)
    assert text == ("defgabc" * 20)[: CONTEXT - 3]


def test_beam_search_takes_a_prompt_longer_than_the_context(tokenizer):
    model = chain(tokenizer, circle(ids_of(tokenizer, "abcdefg")))
    settings = SamplingSettings(max_new_tokens=10, temperature=0.0, num_beams=2)
    assert continuations(model, tokenizer, ["abcdefg" * 10], settings) == ["abcdefgabc"]


def test_beam_search_does_not_depend_on_the_other_prompts(model, tokenizer):
    settings = SamplingSettings(max_new_tokens=25, temperature=0.0, num_beams=3)
    (alone,) = continuations(model, tokenizer, ["n"], settings)
    together = continuations(model, tokenizer, ["n", "Good night, sweet lady"], settings)
    assert differing(together[:1], [alone]) == []


# --- the draw

LOGITS = torch.tensor([[2.0, -1.0, 0.5, -torch.inf, 1.4, 0.0, -0.3, 1.9]])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_drawn_tokens_follow_the_softmax(temperature):
    expected = (LOGITS[0].double() / temperature).softmax(-1).numpy()
    settings = SamplingSettings(temperature=temperature)
    counts = drawn_counts(settings, LOGITS, even_draws(10_000))
    # Evenly spread numbers leave only the rounding at the two ends of a token's share.
    assert np.abs(counts - 10_000 * expected).max() <= 2


def test_random_draws_follow_the_softmax():
    draws = torch.rand(5000, generator=torch.Generator().manual_seed(3))
    counts = drawn_counts(SamplingSettings(temperature=1.0), LOGITS, draws)
    possible = LOGITS[0] > -torch.inf
    assert counts[3] == 0
    probabilities = LOGITS[0, possible].double().softmax(-1).numpy()
    assert (
        chi_square(counts[possible.numpy()], probabilities) < 27.9
    )  # 99.99 % of the time, 6 degrees of freedom


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53], ids=["the smallest", "the largest"])
def test_the_extreme_numbers_draw_only_possible_tokens(number):
    scores = torch.tensor([[-torch.inf, 1.0, 2.0, -torch.inf]])
    tokens, _ = draw(scores, torch.tensor([number], dtype=torch.float64).float())
    assert tokens.item() == (1 if number == 0 else 2)


def test_a_large_vocabulary_is_drawn_without_bias():
    """Sums over 50,257 small probabilities must not drift: evenly spread numbers hit each quarter equally."""
    scores = torch.zeros(1, 50_257)
    tokens, _ = draw(scores.expand(400, -1), even_draws(400))
    quarters = np.bincount(tokens.numpy() * 4 // 50_257, minlength=4)
    assert np.abs(quarters - 100).max() <= 1


def nucleus(probabilities: np.ndarray, settings: SamplingSettings) -> set[int]:
    """The tokens that top-k, then top-p, then min-p leave, by their definitions."""
    order = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])
    kept = order[: settings.top_k] if settings.top_k else order
    total = sum(probabilities[token] for token in kept)
    chosen, reached = [], 0.0
    for token in kept:
        if reached < settings.top_p:
            chosen.append(token)
            reached += probabilities[token] / total
    smallest = settings.min_p * probabilities[order[0]]
    return {token for token in chosen if probabilities[token] >= smallest and probabilities[token] > 0}


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 100},
        {"top_p": 0.01},
        {"top_p": 0.6},
        {"top_p": 0.9},
        {"min_p": 0.2},
        {"min_p": 0.7},
        {"top_k": 4, "top_p": 0.8},
        {"top_k": 5, "top_p": 0.95, "min_p": 0.3},
        # The temperature comes first: it decides how many tokens the probabilities p cover.
        {"top_p": 0.6, "temperature": 3.0},
        {"top_p": 0.6, "temperature": 0.3},
        {"min_p": 0.2, "temperature": 3.0},
    ],
    ids=str,
)
def test_only_tokens_of_the_set_are_drawn_each_by_its_share(options):
    settings = SamplingSettings(**{"temperature": 1.0, **options})
    probabilities = (LOGITS[0].double() / settings.temperature).softmax(-1).numpy()
    allowed = nucleus(probabilities, settings)
    counts = drawn_counts(settings, LOGITS, even_draws(10_000))
    assert set(np.flatnonzero(counts)) == allowed
    shares = np.array([p if token in allowed else 0.0 for token, p in enumerate(probabilities)])
    assert np.abs(counts - 10_000 * shares / shares.sum()).max() <= 2


@pytest.mark.parametrize("spread", [0.1, 3.0], ids=["flat", "peaked"])
@pytest.mark.parametrize(
    "options", [{"top_p": 0.97}, {"top_k": 2500, "top_p": 0.9}, {"top_p": 0.5, "min_p": 0.1}]
)
def test_of_many_words_those_are_left_that_transformers_leaves(spread, options):
    """Flat ones need more than those that are looked at first."""
    torch.manual_seed(0)
    scores = torch.randn(4, 3 * NUCLEUS_TOKENS) * spread
    settings = SamplingSettings(**options)
    expected = scores
    if settings.top_k:
        expected = TopKLogitsWarper(settings.top_k)(None, expected)
    expected = TopPLogitsWarper(settings.top_p)(None, expected)
    if settings.min_p:
        expected = MinPLogitsWarper(settings.min_p)(None, expected)
    # At the border the order of a sum decides.
    assert ((limit(scores, settings) > -torch.inf) != (expected > -torch.inf)).sum() <= 1


def test_written_tokens_follow_the_models_distribution_one_independent_of_the_next(tokenizer):
    """Through the whole way: texts, places in a text and window slides each have numbers of their own."""
    letters = ids_of(tokenizer, "abc")
    model = urn(tokenizer, dict(zip(letters, (0.0, 0.7, 1.2), strict=True)))
    texts = continuations(
        model, tokenizer, [""], SamplingSettings(max_new_tokens=60, temperature=1.0),
        num_return_sequences=80, batch_size=80,
    )  # fmt: skip
    places = np.array([["abc".index(letter) for letter in text] for text in texts])
    assert places.shape == (80, 60)
    probabilities = torch.tensor([0.0, 0.7, 1.2], dtype=torch.float64).softmax(-1).numpy()
    counts = np.bincount(places.flatten(), minlength=3)
    assert chi_square(counts, probabilities) < 18.4  # 99.99 %, 2 degrees of freedom
    pairs = np.outer(probabilities, probabilities).flatten()
    in_a_text = np.bincount((places[:, :-1:2] * 3 + places[:, 1::2]).flatten(), minlength=9)
    assert chi_square(in_a_text, pairs) < 31.8  # 99.99 %, 8 degrees of freedom
    of_two_texts = np.bincount((places[::2] * 3 + places[1::2]).flatten(), minlength=9)
    assert chi_square(of_two_texts, pairs) < 31.8


# --- repetition, ends, beginnings


def test_repetition_penalty_makes_tokens_already_there_less_likely(tokenizer):
    a, b, c = ids_of(tokenizer, "abc")
    model = urn(tokenizer, {a: 4.0, b: 3.0, c: 2.5})
    without, with_penalty = (
        continuations(
            model,
            tokenizer,
            [""],
            SamplingSettings(max_new_tokens=6, temperature=0.0, repetition_penalty=penalty),
        )
        for penalty in (1.0, 2.0)
    )
    assert without == ["aaaaaa"]
    # a halves to 2, then b to 1.5, then c to 1.25; a is the best of what is left, and is not halved again.
    assert with_penalty == ["abcaaa"]


def test_padding_is_no_repetition(tokenizer):
    """Padding is <|endoftext|>: were it penalized, short prompts beside long ones would not end."""
    a, b = ids_of(tokenizer, "ab")
    model = urn(tokenizer, {a: 4.0, tokenizer.eos_token_id: 3.0, b: 1.0})
    settings = SamplingSettings(max_new_tokens=6, temperature=0.0, repetition_penalty=2.0)
    assert continuations(model, tokenizer, ["b"], settings) == ["a"]
    assert continuations(model, tokenizer, ["b", "bbbb"], settings) == ["a", "a"]


@pytest.mark.parametrize(
    ("temperature", "num_beams"), [(0.0, 1), (1.0, 1), (0.0, 2)], ids=["greedy", "drawn", "beams"]
)
def test_a_text_stops_at_the_end_of_text(tokenizer, temperature, num_beams):
    a, b, c, d = ids_of(tokenizer, "abcd")
    end = tokenizer.eos_token_id
    # After the end the model would go on with d; the second prompt needs three tokens more to get there.
    model = chain(tokenizer, {**circle([a, b, c, end]), end: d, d: d})
    settings = SamplingSettings(max_new_tokens=10, temperature=temperature, num_beams=num_beams)
    assert continuations(model, tokenizer, ["b", "a", "c", "d"], settings) == ["c", "bc", "", "d" * 10]


def test_an_empty_prompt_starts_at_the_end_of_text(tokenizer):
    a, b = ids_of(tokenizer, "ab")
    model = chain(tokenizer, {tokenizer.eos_token_id: b, b: a, a: a})
    assert tokenizer.convert_ids_to_tokens(prompt_ids(tokenizer, "")) == [END_OF_TEXT]
    pairs = write_texts(model, tokenizer, [""], SamplingSettings(max_new_tokens=3, temperature=0.0))
    assert list(pairs) == [("", "baa")]


def test_an_empty_prompt_takes_the_beginning_of_text_where_a_tokenizer_has_one():
    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "word": 2}, unk_token="<s>"))
    both = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    assert prompt_ids(both, "") == [0]


def test_the_space_before_the_first_new_word_is_kept():
    """SentencePiece-like decoders drop the space in front of a text, but a continuation is no beginning."""
    backend = Tokenizer(models.WordLevel({"<s>": 0, "▁the": 1, "▁king": 2}, unk_token="<s>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<s>")
    words = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    model = chain(words, {1: 2, 2: 1})
    pairs = write_texts(model, words, ["the"], SamplingSettings(max_new_tokens=3, temperature=0.0))
    assert [prompt + text for prompt, text in pairs] == ["the king the king"]


# --- stop strings and bad words


def test_a_text_ends_before_the_first_stop_string_and_is_not_written_further(tokenizer):
    model = chain(tokenizer, circle(ids_of(tokenizer, "abcdefg")))
    calls = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    settings = SamplingSettings(max_new_tokens=100, stop=["fga", "efga", "xyz"])
    assert continuations(model, tokenizer, ["a", "e", "ef"], settings) == ["bcd", "", "gabcd"]
    hook.remove()
    assert len(calls) == 9  # what the longest of them needs


def test_a_stop_string_may_lie_over_a_window_slide_but_not_in_the_prompt(tokenizer):
    model = chain(tokenizer, circle(ids_of(tokenizer, "abcdefg")), positions=4)
    settings = SamplingSettings(max_new_tokens=50, stop=["gabcdefgabc"])
    assert continuations(model, tokenizer, ["abcdefgabcdefgabcde"], settings) == ["f"]


@pytest.mark.parametrize("kind", ["byte", "char"])
def test_a_stop_string_is_found_in_the_text_whatever_its_tokens(kind, request):
    tokenizer = request.getfixturevalue(f"{kind}_tokenizer")
    model = chain(tokenizer, circle(ids_of(tokenizer, "a漢字ø")))
    pieces, text = streamed(
        model, tokenizer, "a漢字ø", SamplingSettings(max_new_tokens=90, stop=["字øa漢字"])
    )
    assert text == "".join(pieces) == "a漢"


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_streamed_that_a_stop_string_takes_back(tokenizer, seed):
    model = urn(tokenizer, dict.fromkeys(ids_of(tokenizer, "ab"), 0.0))
    stop = ["abaab", "bbbb", "aabaaa"]
    settings = SamplingSettings(max_new_tokens=60, temperature=1.0, seed=seed)
    (whole,) = continuations(model, tokenizer, [""], settings)
    pieces, text = streamed(model, tokenizer, "", replace(settings, stop=stop))
    first = min((whole.find(string) + len(string) for string in stop if string in whole), default=len(whole))
    expected = min((at for string in stop if (at := whole[:first].find(string)) >= 0), default=len(whole))
    assert "".join(pieces) == text == whole[:expected]
    assert continuations(model, tokenizer, ["", ""], replace(settings, stop=stop))[0] == text


def test_bad_words_are_never_written(model, tokenizer):
    settings = SamplingSettings(max_new_tokens=45, temperature=1.0)
    free = continuations(model, tokenizer, PROMPTS, settings, num_return_sequences=3)
    words = sorted({text[at : at + 2] for text in free if len(text) > 10 for at in (5, len(text) - 3)})
    bound = continuations(
        model, tokenizer, PROMPTS, replace(settings, bad_words=words), num_return_sequences=3
    )
    assert [word for word in words for text in bound if word in text] == []
    # Up to the first of them the texts are as they were.
    same = [min((text.find(word) + 1 for word in words if word in text), default=len(text)) for text in free]
    starts = ([text[:end] for text, end in zip(texts, same, strict=True)] for texts in (free, bound))
    assert differing(*starts) == []
    alone = continuations(model, tokenizer, PROMPTS[3:4], replace(settings, bad_words=words), first_number=9)
    assert differing(alone, bound[9:10]) == []


def test_a_bad_word_cannot_be_completed_from_the_prompt_but_stand_in_it(tokenizer):
    a, b, c = ids_of(tokenizer, "abc")
    model = urn(tokenizer, {a: 3.0, b: 2.0, c: 1.0})
    settings = SamplingSettings(max_new_tokens=4, temperature=0.0, bad_words=["ba", "cb", "aa"])
    assert continuations(model, tokenizer, ["bab", "cc", "aa"], settings) == ["bbbb", "abbb", "bbbb"]


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 0.01}, {"min_p": 0.99}], ids=str)
def test_where_only_bad_words_are_likely_the_next_likely_is_written(tokenizer, options):
    a, b, c = ids_of(tokenizer, "abc")
    model = urn(tokenizer, {a: 5.0, b: 4.0, c: 3.0})
    settings = SamplingSettings(max_new_tokens=5, temperature=1.0, bad_words=["a", "bb"], **options)
    assert continuations(model, tokenizer, [""], settings) == ["bcbcb"]


@pytest.mark.parametrize("kind", ["byte", "char"])
def test_a_bad_word_is_kept_out_whatever_its_tokens(kind, request):
    """é is two tokens, and each may stand alone."""
    tokenizer = request.getfixturevalue(f"{kind}_tokenizer")
    model = urn(tokenizer, dict.fromkeys(ids_of(tokenizer, "aé"), 0.0))
    settings = SamplingSettings(max_new_tokens=200, temperature=1.0, bad_words=["é"])
    (text,) = continuations(model, tokenizer, ["a"], settings)
    assert "a" in text and "�" in text and "é" not in text


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_bad_words_leave_nothing_that_is_said(tokenizer, temperature):
    model = urn(tokenizer, dict.fromkeys(ids_of(tokenizer, "ab"), 0.0))
    with torch.no_grad():
        model.lm_head.weight[model.lm_head.weight < 0] = -torch.inf
    settings = SamplingSettings(max_new_tokens=5, temperature=temperature, bad_words=["a", "b"])
    with pytest.raises(UsageError, match="bad_words leave the model no token to write"):
        continuations(model, tokenizer, [""], settings)


def test_without_bad_words_the_others_keep_their_shares(tokenizer):
    """Drawn again with the same number, b would have the whole share of a."""
    a, b, c = ids_of(tokenizer, "abc")
    model = urn(tokenizer, {a: 1.5, b: 0.7, c: 0.0})
    settings = SamplingSettings(max_new_tokens=60, temperature=1.0, bad_words=["a"])
    texts = continuations(model, tokenizer, [""], settings, num_return_sequences=40, batch_size=40)
    counts = np.array(["".join(texts).count(letter) for letter in "bc"])
    assert counts.sum() == 2400
    shares = torch.tensor([0.7, 0.0], dtype=torch.float64).softmax(-1).numpy()
    assert chi_square(counts, shares) < 15.1  # 99.99 %, 1 degree of freedom


# --- beyond the context


@pytest.mark.parametrize("context", [1, 2, 3, 32])
@pytest.mark.parametrize(
    "prompt", ["", "c", "abcdefg" * 10], ids=["empty", "short", "longer than the context"]
)
def test_the_window_slides_without_dropping_or_repeating_a_token(tokenizer, prompt, context):
    following = circle(ids_of(tokenizer, "abcdefg")) | {tokenizer.eos_token_id: ids_of(tokenizer, "a")[0]}
    model = chain(tokenizer, following, positions=context)
    start = "abcdefg".index(prompt[-1]) + 1 if prompt else 0
    count = 100 if context > 3 else 10
    (text,) = continuations(model, tokenizer, [prompt], SamplingSettings(max_new_tokens=count))
    assert text == ("abcdefg" * 20)[start : start + count]


def test_prompts_shorter_and_longer_than_the_context_go_in_one_batch(tokenizer):
    model = chain(tokenizer, circle(ids_of(tokenizer, "abcdefg")))
    prompts = ["c", "abcdefg" * 10, "abcd"]
    texts = continuations(model, tokenizer, prompts, SamplingSettings(max_new_tokens=50))
    circles = "abcdefg" * 20
    assert texts == [circles[start : start + 50] for start in (3, 0, 4)]


def test_of_a_too_long_prompt_the_last_half_context_counts_and_the_user_is_told(model, tokenizer, warnings):
    prompt = make_text(3, seed=5)[:50]
    settings = SamplingSettings(max_new_tokens=10, temperature=0.0)
    whole, end = continuations(model, tokenizer, [prompt, prompt[-CONTEXT // 2 :]], settings, batch_size=1)
    assert whole == end
    warn_of_long_prompts(model, tokenizer, ["short", prompt])
    assert warnings.messages == [
        "warning: prompt 2 has 50 tokens, the model's context 32; it sees the last 16 of them"
    ]


# --- what writing leaves alone


@pytest.mark.parametrize("num_beams", [1, 2])
def test_no_global_generator_is_touched(model, tokenizer, num_beams):
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    settings = SamplingSettings(
        max_new_tokens=40, temperature=0.0 if num_beams > 1 else 1.0, num_beams=num_beams
    )
    assert continuations(model, tokenizer, PROMPTS, settings)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize("was_training", [True, False])
def test_the_model_is_put_back_into_its_mode(model, tokenizer, was_training):
    modes = []
    hook = model.register_forward_hook(lambda module, *_: modes.append(module.training))
    try:
        model.train(was_training)
        continuations(model, tokenizer, ["a"], SamplingSettings(max_new_tokens=2))
        assert model.training is was_training
        assert set(modes) == {False}  # no dropout while writing
    finally:
        hook.remove()
        model.eval()


def test_the_model_is_put_back_into_its_mode_when_writing_fails(model, tokenizer):
    def fail(piece):
        raise RuntimeError("the reader has left")

    try:
        model.train()
        with pytest.raises(RuntimeError, match="the reader has left"):
            continuations(model, tokenizer, ["a"], SamplingSettings(max_new_tokens=5), on_text=fail)
        assert model.training
        texts = write_texts(model, tokenizer, ["a", "b"], SamplingSettings(max_new_tokens=2), batch_size=1)
        next(texts)
        texts.close()
        assert model.training
    finally:
        model.eval()


# --- streaming


def streamed(model, tokenizer, prompt: str, settings: SamplingSettings) -> tuple[list[str], str]:
    pieces: list[str] = []
    (text,) = continuations(model, tokenizer, [prompt], settings, on_text=pieces.append)
    return pieces, text


def test_streamed_pieces_joined_are_the_text(tokenizer):
    model = urn(tokenizer, dict.fromkeys(ids_of(tokenizer, "abcdefg \n"), 0.0))
    settings = SamplingSettings(max_new_tokens=100, temperature=1.0)
    pieces, text = streamed(model, tokenizer, "the king", settings)
    assert text == continuations(model, tokenizer, ["the king"], settings)[0]
    assert pieces == list(text)  # each as soon as it is there
    assert len(text) == 100


@pytest.mark.parametrize("kind", ["byte", "char"])
def test_multi_byte_characters_are_streamed_whole_across_window_slides(kind, request):
    tokenizer = request.getfixturevalue(f"{kind}_tokenizer")
    # Bytes that all differ, so that each has one successor: 漢字ø are 3 + 3 + 2 of them, no word of either vocabulary.
    ids = ids_of(tokenizer, "a漢字ø")
    assert len(set(ids)) == 9
    model = chain(tokenizer, circle(ids))
    pieces, text = streamed(model, tokenizer, "a漢字ø", SamplingSettings(max_new_tokens=90))
    assert text == "".join(pieces) == "a漢字ø" * 10
    assert "�" not in "|".join(pieces)
    assert len(pieces) >= 10  # a run of bytes may wait for its end, but no longer


@pytest.mark.parametrize("kind", ["byte", "char"])
@pytest.mark.parametrize("seed", range(3))
def test_pieces_joined_are_the_text_whatever_bytes_are_written(kind, seed, request):
    """A model that has learnt little writes bytes that are no character at all, also right after one."""
    tokenizer = request.getfixturevalue(f"{kind}_tokenizer")
    model = urn(tokenizer, dict.fromkeys(ids_of(tokenizer, "aé"), 0.0))  # 1 + 2 bytes, in any order
    settings = SamplingSettings(max_new_tokens=400, temperature=1.0, seed=seed)
    pieces, text = streamed(model, tokenizer, "a", settings)
    assert text == continuations(model, tokenizer, ["a"], settings)[0]
    assert "é" in text and "�" in text
    assert "".join(pieces) == text


def test_streaming_shows_neither_the_prompt_nor_the_end_of_text(tokenizer):
    a, b, c = ids_of(tokenizer, "abc")
    model = chain(tokenizer, circle([a, b, c, tokenizer.eos_token_id]))
    pieces, text = streamed(model, tokenizer, "a", SamplingSettings(max_new_tokens=10))
    assert text == "bc"
    assert pieces == ["b", "c"]


# --- what is made fast


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "build",
    [lambda: nn.Linear(7, 19), lambda: nn.Linear(7, 5, bias=False), lambda: Conv1D(33, 7)],
    ids=["linear", "without a bias", "convolution"],
)
def test_packed_weights_multiply_as_the_others_do(dtype, build):
    if not can_pack(GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=9)).to(dtype)):
        pytest.skip("this processor has no use for it")
    torch.manual_seed(0)
    layer = build().to(dtype)
    rows = [torch.randn(*shape, 7).to(dtype) for shape in ((1, 1), (3, 1), (33, 1), (2, 40))]
    with torch.no_grad():
        expected = [layer(each) for each in rows]
        pack_weights(nn.Sequential(layer))
        for each, output in zip(rows, expected, strict=True):
            torch.testing.assert_close(layer(each), output)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_model_writes_what_it_writes(tokenizer, dtype):
    for name, overrides in ARCHITECTURES.items():
        torch.manual_seed(1)
        config = scratch_config(name, None, overrides | RANDOM_WEIGHTS, block_size=CONTEXT)
        made = build_model(config, tokenizer, dtype="float32", attn_implementation=None).eval().to(dtype)
        if not can_pack(made):
            pytest.skip("this processor has no use for it")
        settings = SamplingSettings(max_new_tokens=45, temperature=0.0)
        before = continuations(made, tokenizer, PROMPTS, settings)
        pack_weights(made)
        assert differing(continuations(made, tokenizer, PROMPTS, settings), before) == []


@pytest.mark.parametrize("shared", [1, 3], ids=["a key a head", "keys of three heads"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("room", [0, 11])
def test_attention_of_a_single_token_is_that_of_torch(shared, masked, room):
    torch.manual_seed(0)
    query = torch.randn(4, 6, 1, 8)
    key, value = (torch.randn(4, 6 // shared, 20 + room, 8)[:, :, :20] for _ in range(2))
    mask = torch.rand(4, 1, 1, 20) < 0.6 if masked else None
    expected = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    half = [tensor.to(torch.bfloat16) for tensor in (query, key, value)]
    half[1:] = [torch.cat([each, each[:, :, :room]], 2)[:, :, :20] for each in half[1:]]
    module = nn.Module()
    module.num_key_value_groups = shared
    output, _ = _attention(module, *half, mask, scaling=0.3)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0.02, atol=0.02)


def test_the_model_gets_its_attention_back(model):
    own = model.config._attn_implementation
    with decoding_attention(model):
        assert model.config._attn_implementation != own
    assert model.config._attn_implementation == own == "sdpa"
