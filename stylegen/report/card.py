"""The model card: README.md of the run directory, which the hub shows.

It is for people who have the model and nothing else of the run, so it names no folder of this machine, and its numbers
and its sample are those of the model that was kept, which need not be that of the last step. The metadata on top are
written by the hub's own library, so that no name can break them.
"""

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from stylegen.config import SHAKESPEARE
from stylegen.config.privacy import for_trackers
from stylegen.report.differences import ELSEWHERE
from stylegen.report.markdown import code, escaped
from stylegen.report.record import Row, RunRecord
from stylegen.report.tables import shown
from stylegen.report.templates import TEMPLATES
from stylegen.report.words import got_worse, hardware_in_words, software_in_words, style_in_words
from stylegen.tracking import AXIS, Sample

FIGURE = "figures/loss.png"  # that the card shows
MOST_CHARACTERS = 3000  # of the sample
# (key of a row, its name in the hub's metadata, in words, its format)
METRICS = (
    ("eval/loss", "loss", "Validation loss (nats per token)", ".4f"),
    ("eval/accuracy", "accuracy", "Share of next tokens that are right", ".2%"),
    ("eval/perplexity", "perplexity", "Perplexity", ",.2f"),
    ("eval/bits_per_byte", "bits_per_byte", "Bits per byte", ".4f"),
)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def write_card(record: RunRecord, repository: str | None = None) -> None:
    """Write README.md into the run directory; `repository` is the model's name on the hub, once it is known."""
    page = TEMPLATES.get_template("card.md.j2").render(_values(record, repository))
    (record.directory / "README.md").write_text(page, encoding="utf-8")


def metadata(record: RunRecord) -> ModelCardData:
    """What stands on top of the card, for the hub's search and its tables."""
    base, dataset = base_on_hub(record), _dataset_on_hub(record)
    data = ModelCardData(
        library_name="peft" if is_adapter(record) else "transformers",
        pipeline_tag="text-generation",
        tags=["stylegen", *filter(None, [_architecture(record)]), *(["lora"] if is_adapter(record) else [])],
        base_model=base,
        datasets=[dataset] if dataset else None,
    )
    if base:
        data["base_model_relation"] = "adapter" if is_adapter(record) else "finetune"
    if results := _results(record):
        data["model_name"], data["eval_results"] = record.name, results
    return data


def is_adapter(record: RunRecord) -> bool:
    """Whether the model of a run is an adapter: as its files say, before there are any as it is to be."""
    if (record.directory / "adapter_config.json").is_file():
        return True
    settings, is_whole = record.settings, (record.directory / "config.json").is_file()
    return bool(settings.get("lora_r")) and not settings.get("merge_lora") and not is_whole


def base_on_hub(record: RunRecord) -> str | None:
    """The pretrained model that a run began with, if it is one of the hub."""
    name = record.settings.get("model_name_or_path")
    return name if _is_on_hub(record, name) else None


def _dataset_on_hub(record: RunRecord) -> str | None:
    name = record.settings.get("dataset_name")
    return name if name != SHAKESPEARE and _is_on_hub(record, name) else None


def _is_on_hub(record: RunRecord, name: Any) -> bool:
    """Whether a name is one of the hub: it looks like it, and there is no such folder where the run was started."""
    if not isinstance(name, str) or not HUB_ID.fullmatch(name):
        return False
    here, out = record.directory.resolve().parts, Path(str(record.settings.get("output_dir") or "")).parts
    started_in = Path(*here[: -len(out)]) if out and here[-len(out) :] == out else Path()
    return not any((place / name).exists() for place in (Path(), started_in))


def _architecture(record: RunRecord) -> str | None:
    """As Transformers calls it, from the model or, before there is one, from the arguments."""
    try:
        config = json.loads((record.directory / "config.json").read_text(encoding="utf-8"))
        return str(config["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return record.settings.get("model_type")


def _results(record: RunRecord) -> list[EvalResult]:
    row, dataset = record.best or {}, _dataset_on_hub(record)
    return [
        EvalResult(
            task_type="text-generation", task_name="Text generation", dataset_type=dataset or "text",
            dataset_name=dataset or "Validation text", dataset_split="validation",
            metric_type=kind, metric_name=words, metric_value=round(float(row[key]), 6),
        )
        for key, kind, words, _ in METRICS if math.isfinite(row.get(key, math.nan))
    ]  # fmt: skip


# --- the page


def _values(record: RunRecord, repository: str | None) -> dict[str, Any]:
    settings, environment = for_trackers(record.settings), record.environment
    best, sample, licence = record.best, _sample(record), record.settings.get("data_license")
    preset = {name: value for name, value in settings.items() if name not in ELSEWHERE}
    return {
        "metadata": metadata(record).to_yaml(),
        "title": escaped(record.name),
        "is_adapter": is_adapter(record),
        "base": code(settings["model_name_or_path"]) if settings.get("model_name_or_path") else None,
        "is_base_on_hub": base_on_hub(record) is not None,
        "architecture": escaped(str(_architecture(record) or settings.get("config_name") or "language")),
        "parameters": environment.get("parameters"),
        "trained_parameters": environment.get("trained_parameters"),
        "best": best,
        "numbers": [
            (words, *(shown(row.get(key), form) if row else "" for row in (record.start, best)))
            for key, _, words, form in METRICS
        ],
        "is_worse": got_worse(record),
        "style": style_in_words([row for row in record.rows if not best or row[AXIS] <= best[AXIS]]),
        "figure": FIGURE if (record.directory / FIGURE).is_file() else None,
        "code": _lines_to_write(
            record, repository or record.settings.get("hub_model_id") or record.name, sample
        ),
        "sample": sample and {"step": sample.step, "header": escaped(sample.header), "text": _texts(sample)},
        "facts": _facts(record, settings),
        "licence": escaped(str(licence)).rstrip(".") if licence else None,
        "preset": yaml.safe_dump(preset, sort_keys=False, allow_unicode=True),
        "command": f"python run_clm.py preset.yaml --output_dir {shlex.quote(f'out/{record.name}')}",
        "commit": environment.get("git_commit"),
    }


def _sample(record: RunRecord) -> Sample | None:
    """What the model that was kept has written, or one as near to it as there is."""
    if not record.samples:
        return None
    step = record.best[AXIS] if record.best else record.samples[-1].step
    return min(record.samples, key=lambda sample: (abs(sample.step - step), -sample.step))


def _texts(sample: Sample) -> str:
    texts = "\n====\n".join(sample.texts)
    return texts if len(texts) <= MOST_CHARACTERS else f"{texts[:MOST_CHARACTERS]}…"


def _lines_to_write(record: RunRecord, name: str, sample: Sample | None) -> dict[str, str | int]:
    """What the lines of Python need that write with the model: they fit its context, and begin as its samples do."""
    words = "".join((sample.texts if sample else [""])[:1]).split()
    prompt = next((prompt for prompt in (sample.prompts if sample else ()) if prompt.strip()), "")
    prompt = prompt if 0 < len(prompt) <= 40 else " ".join(words[:1])[:40] or "The"
    base, revision = base_on_hub(record), record.settings.get("model_revision")
    folder = Path(str(record.settings.get("model_name_or_path"))).name
    return {
        "model": json.dumps(name),
        "base": json.dumps(base or folder),
        "revision": f", revision={json.dumps(revision)}" if revision else "",
        "remark": "" if base else "  # a folder that the hub does not have",
        "prompt": json.dumps(prompt, ensure_ascii=False),
        "length": min(100, max(1, int(record.settings.get("block_size") or 200) // 2)),
    }


# --- how it was trained


def _facts(record: RunRecord, settings: dict[str, Any]) -> list[tuple[str, str]]:
    """(what, in words) of the training; a fact that the run directory does not tell is left out."""
    told = [
        ("Text", _text(settings)),
        ("Tokenizer", _tokenizer(settings)),
        ("Length", _length(record)),
        ("Batch", _batch(settings)),
        ("Optimizer", _optimizer(settings)),
        ("Adapter", _adapter(settings)),
        ("Precision", _precision(record.environment, settings)),
        ("Hardware", escaped(hardware_in_words(record.environment))),
        ("Time", _time(record.rows)),
        ("Software", escaped(software_in_words(record.environment))),
    ]
    return [(what, words) for what, words in told if words]


def _text(settings: dict[str, Any]) -> str:
    named = settings.get("train_file") or [settings.get("prompt_file"), settings.get("completion_file")]
    if settings.get("dataset_name"):
        named = [settings["dataset_name"], settings.get("dataset_config_name")]
    files = [settings.get("validation_prompt_file"), settings.get("validation_completion_file")]
    apart = settings.get("validation_file") or [name for name in files if name]
    words = ", ".join(code(str(name)) for name in named if name)
    if apart and words:
        return f"{words}; evaluated on {', '.join(code(str(name)) for name in apart)}"
    part = settings.get("validation_split_percentage")
    return f"{words}; {part:g} % of it were kept apart for the evaluation" if part and words else words


def _tokenizer(settings: dict[str, Any]) -> str:
    if settings.get("tokenizer_name"):
        return f"that of {code(settings['tokenizer_name'])}"
    if not settings.get("train_tokenizer"):
        return "that of the base model"
    words = f" of {settings['vocab_size']:,} words" if settings.get("vocab_size") else ""
    kind = "characters" if settings["train_tokenizer"] == "char" else f"byte-level BPE{words}"
    return f"{kind}, trained on the text"


def _length(record: RunRecord) -> str:
    end, best = record.rows[-1], record.best
    words = f"{end[AXIS]:,} steps, {end['train/epoch']:.2f} epochs, {end['train/tokens_seen']:,} tokens"
    return f"{words}; the best model, which is this one, is that of step {best[AXIS]:,}" if best else words


def _batch(settings: dict[str, Any]) -> str:
    blocks, size = settings.get("total_batch_size"), settings.get("block_size")
    if not (blocks and size):
        return ""
    return f"{blocks:,} blocks of {size:,} tokens a step, {blocks * size:,} tokens; packing {settings.get('packing')}"


def _optimizer(settings: dict[str, Any]) -> str:
    schedule = str(settings.get("lr_scheduler_type")).replace("_", " ")
    warm_up, clip = settings.get("num_warmup_steps") or 0, settings.get("max_grad_norm")
    parts = [
        f"{settings.get('optim')}, learning rate {settings.get('learning_rate')}, schedule {schedule}",
        *([f"warm-up {f'{warm_up:.0%} of the' if warm_up < 1 else f'{warm_up:g}'} steps"] if warm_up else []),
        f"weight decay {settings.get('weight_decay')}",
        *([f"gradients clipped to {clip}"] if clip else []),
        f"seed {settings.get('seed')}",
    ]
    return escaped(", ".join(parts))


def _adapter(settings: dict[str, Any]) -> str:
    if not settings.get("lora_r"):
        return ""
    layers = ", ".join(settings.get("lora_target_modules") or ["all linear ones but the output"])
    alpha = settings.get("lora_alpha") or 2 * settings["lora_r"]
    merged = "; merged into the model" if settings.get("merge_lora") else ""
    return escaped(f"LoRA of rank {settings['lora_r']}, alpha {alpha:g}, layers: {layers}{merged}")


def _precision(environment: dict[str, Any], settings: dict[str, Any]) -> str:
    mixed = environment.get("mixed_precision") or settings.get("mixed_precision")
    weights = settings.get("dtype")
    return f"weights {weights}" + (f", products in {mixed}" if mixed in ("bf16", "fp16") else "")


def _time(rows: list[Row]) -> str:
    """What the steps took; evaluations, samples and saves come on top."""
    seconds, tokens, before = 0.0, 0, 0
    for row in rows:
        if "perf/step_seconds" in row:
            seconds += (row[AXIS] - before) * row["perf/step_seconds"]
            before, tokens = row[AXIS], row["train/tokens_seen"]
    if not (seconds and math.isfinite(seconds)):
        return ""
    units = ((3600, "hours"), (60, "minutes"), (1, "seconds"))
    size, unit = next((size, unit) for size, unit in units if seconds >= 2 * size or size == 1)
    return f"{seconds / size:.{int(size == 3600)}f} {unit} of steps, {tokens / seconds:,.0f} tokens a second"
