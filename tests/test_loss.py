"""The loss over chunks of logits against torch's own cross-entropy over all of them."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, GPTJConfig, LlamaConfig

from stylegen.loss import IGNORED, LanguageModelLoss, chunk_rows, ends_in_linear, linear_cross_entropy

SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZE |= {"num_key_value_heads": 1, "vocab_size": 300}


def inputs(rows, vocab_size, dtype=torch.float32, width=48):
    generator = torch.Generator().manual_seed(rows + vocab_size)
    hidden = torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = (torch.randn(vocab_size, width, generator=generator, dtype=torch.float64) / 4).to(dtype)
    labels = torch.randint(0, vocab_size, (rows,), generator=generator)
    return hidden, weight.requires_grad_(), labels


def plain(hidden, weight, labels):
    return F.cross_entropy(F.linear(hidden, weight).float(), labels, ignore_index=IGNORED, reduction="sum")


def value_and_gradients(function, hidden, weight, labels, scale=1.0):
    hidden.grad = weight.grad = None
    loss = function(hidden, weight, labels)
    (loss * scale).backward()
    return loss.item(), hidden.grad, weight.grad


@pytest.mark.parametrize("vocab_size", [512, 8000, 50257])
@pytest.mark.parametrize("ignored", ["none", "some", "most", "all"])
def test_value_and_gradients_are_those_of_all_logits_at_once(vocab_size, ignored):
    """To a millionth, a gradient's of its norm; 200 rows in chunks of 64, the last short; words no multiple of 64."""
    hidden, weight, labels = inputs(200, vocab_size - 3)
    labels[{"none": slice(0), "some": slice(60, 70), "most": slice(3, None), "all": slice(None)}[ignored]] = (
        IGNORED
    )
    expected = value_and_gradients(plain, hidden, weight, labels, 1 / 200)
    found = value_and_gradients(
        lambda *values: linear_cross_entropy(*values, 64)[0], hidden, weight, labels, 1 / 200
    )
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


def test_a_small_chance_is_no_infinite_loss():
    """Logits that are hundreds apart: exp of the difference is 0 in fp32, its logarithm is not asked for."""
    hidden, weight, labels = torch.tensor([[400.0]]), torch.tensor([[1.0], [-1.0]]), torch.tensor([1])
    hidden.requires_grad_()
    loss = linear_cross_entropy(hidden, weight, labels, 64)[0]
    loss.backward()
    assert loss.item() == 800.0
    assert hidden.grad.item() == 2.0


@pytest.mark.parametrize("vocab_size", [512, 50257])
def test_under_autocast_it_is_as_exact_as_the_plain_one(vocab_size):
    hidden, weight, labels = inputs(200, vocab_size)
    exact = value_and_gradients(plain, hidden, weight, labels)
    errors = []
    for function in (plain, lambda *values: linear_cross_entropy(*values, 64)[0]):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = value_and_gradients(function, hidden, weight, labels)
        errors.append(
            [
                abs(found[0] / exact[0] - 1),
                *((a - b).norm() / b.norm() for a, b in zip(found[1:], exact[1:], strict=True)),
            ]
        )
    assert all(ours <= 1.2 * theirs + 1e-6 for theirs, ours in zip(*errors, strict=True)), errors


def test_a_frozen_weight_gets_no_gradient():
    hidden, weight, labels = inputs(20, 300)
    expected = value_and_gradients(plain, hidden, weight, labels)[1]
    weight.requires_grad_(False)
    hidden.grad = weight.grad = None
    linear_cross_entropy(hidden, weight, labels, 64)[0].backward()
    torch.testing.assert_close(hidden.grad, expected)
    assert weight.grad is None


def test_without_gradients_the_right_guesses_are_counted_too():
    hidden, weight, labels = inputs(200, 300)
    labels[:50] = (hidden[:50] @ weight.T).argmax(-1)
    labels[40:45] = IGNORED
    with torch.no_grad():
        loss, correct = linear_cross_entropy(hidden, weight, labels, 64).tolist()
        guesses = (hidden @ weight.T).argmax(-1)
    assert loss == pytest.approx(plain(hidden, weight, labels).item(), rel=1e-6)
    assert correct == int((guesses == labels).sum()) >= 45


def test_there_is_no_second_backward():
    hidden, weight, labels = inputs(20, 300)
    loss = linear_cross_entropy(hidden, weight, labels, 64)[0]
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_chunk_is_never_empty_and_never_all_of_a_large_vocabulary():
    cpu = torch.device("cpu")
    assert chunk_rows(50257, cpu) == 320
    assert chunk_rows(10**8, cpu) == 64
    assert chunk_rows(50257, torch.device("cuda")) == 8 * 320 + 64


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=300), True),
        (LlamaConfig(**SIZE), True),
        (Gemma2Config(**SIZE, head_dim=16, final_logit_softcapping=30.0), False),  # capped
        (GPTJConfig(n_layer=2, n_head=2, n_embd=32, rotary_dim=8, vocab_size=300), False),  # biased
    ],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_an_output_layer_that_does_more_is_left_as_it_is(config, expected):
    """Either way the loss is that of the logits."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).train()
    state = torch.get_rng_state()
    module = LanguageModelLoss(model)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert module.is_chunked == ends_in_linear(model) == expected
    ids = torch.randint(0, 300, (2, 16))
    module.eval()
    loss, _ = module(ids[:, :-1], ids[:, 1:])
    logits = model(ids[:, :-1]).logits
    assert loss.item() == pytest.approx(
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item(), rel=1e-6
    )
    assert model(ids).logits.shape == (2, 16, 300)  # and the model is what it was
