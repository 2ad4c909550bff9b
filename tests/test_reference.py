"""Our numbers against an independent computation: plain Transformers, plain torch, plain Python."""

import math

import pytest
import torch
from conftest import evaluations, metrics
from transformers import AutoModelForCausalLM, AutoTokenizer


def plain_evaluation(folder, text: str, block_size: int) -> tuple[float, float, int]:
    """(loss, accuracy, tokens) of a text, block by block, in float64, with nothing of ours."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    total, right, count = 0.0, 0, 0
    for start in range(0, len(ids) - 1, block_size):
        inputs = torch.tensor([ids[start : start + block_size]])
        targets = torch.tensor(ids[start + 1 : start + block_size + 1])
        with torch.no_grad():
            logits = model(inputs).logits[0, : len(targets)]
        total -= logits.log_softmax(-1).gather(1, targets[:, None]).sum().item()
        right += int((logits.argmax(-1) == targets).sum())
        count += len(targets)
    return total / count, right / count, count


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_evaluation_equals_plain_transformers(train, text_file, tmp_path, kind):
    validation = tmp_path / "validation.txt"
    validation.write_text(text_file.read_text()[1000:3777])
    vocabulary = ("--vocab_size", "300") if kind == "bpe" else ()
    folder = train(
        "run", "--validation_file", str(validation), "--max_train_steps", "3", "--train_tokenizer", kind, *vocabulary
    )  # fmt: skip
    loss, accuracy, tokens = plain_evaluation(folder, validation.read_text(), 32)
    last = evaluations(folder)[-1]
    assert last["eval/loss"] == pytest.approx(loss, rel=1e-6)
    assert last["eval/accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert last["eval/tokens"] == tokens
    assert last["eval/perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    first_token = AutoTokenizer.from_pretrained(folder)(validation.read_text())["input_ids"][0]
    num_bytes = len(validation.read_bytes()) - len(
        AutoTokenizer.from_pretrained(folder).decode([first_token]).encode()
    )
    assert last["eval/bits_per_byte"] == pytest.approx(loss * tokens / num_bytes / math.log(2), rel=1e-6)


def test_training_steps_equal_a_textbook_loop(train):
    """Same blocks, same schedule, plain torch: losses of each step to 1e-5."""
    flags = (
        "--max_train_samples",
        "21",
        "--weight_decay",
        "0.1",
        "--logging_steps",
        "1",
        "--num_warmup_steps",
        "2",
    )
    off = "n_layer=2,n_head=2,n_embd=32,resid_pdrop=0,embd_pdrop=0,attn_pdrop=0"
    start = train("start", *flags, "--config_overrides", off, "--max_train_steps", "0")
    ours = train("ours", *flags, "--config_overrides", off, "--max_train_steps", "5")

    from stylegen.blocks import step_indices

    model = AutoModelForCausalLM.from_pretrained(start).train()
    cache = next((ours.parent / "cache" / "stylegen").iterdir())
    ids = torch.frombuffer(bytearray((cache / "train.bin").read_bytes()), dtype=torch.int16).long()[
        1:-1
    ]  # without its frame
    decayed = [
        p for name, p in model.named_parameters() if p.ndim == 2 and "wte" not in name and "wpe" not in name
    ]
    others = [p for p in model.parameters() if all(p is not d for d in decayed)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=1e-3
    )
    losses = []
    for step in range(5):
        epoch, position = divmod(step, 3)
        blocks = step_indices(42, epoch, position, 21, 8)
        inputs = torch.stack([ids[int(b) * 32 : int(b) * 32 + 32] for b in blocks])
        targets = torch.stack([ids[int(b) * 32 + 1 : int(b) * 32 + 33] for b in blocks])
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (step / 2 if step < 2 else (5 - step) / 3)
        loss = torch.nn.functional.cross_entropy(model(inputs).logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    rows = [row for row in metrics(ours) if "train/loss" in row]
    assert [row["train/loss"] for row in rows] == pytest.approx(losses, rel=1e-5)
    assert [row["train/learning_rate"] for row in rows] == pytest.approx([0, 5e-4, 1e-3, 2e-3 / 3, 1e-3 / 3])


def test_fine_tuning_starts_at_the_loss_of_the_pretrained_model(train, text_file, tmp_path):
    pretrained = train("pretrained", "--max_train_steps", "5")
    validation = tmp_path / "validation.txt"
    validation.write_text(text_file.read_text()[:2000])
    tuned = train(
        "tuned", "--model_name_or_path", str(pretrained), "--validation_file", str(validation),
        "--max_train_steps", "20", "--learning_rate", "1e-3", tiny=False,
    )  # fmt: skip
    first, last = evaluations(tuned)[0], evaluations(tuned)[-1]
    assert first["train/global_step"] == 0
    assert first["eval/loss"] == pytest.approx(
        plain_evaluation(pretrained, validation.read_text(), 32)[0], rel=1e-6
    )
    assert last["eval/loss"] < first["eval/loss"]


def test_a_bf16_checkpoint_is_trained_in_fp32(train, tmp_path):
    folder = train("pretrained", "--max_train_steps", "1")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "half")
    tuned = train(
        "tuned", "--model_name_or_path", str(tmp_path / "half"), "--max_train_steps", "1", tiny=False
    )
    assert AutoModelForCausalLM.from_pretrained(tuned).dtype == torch.float32
