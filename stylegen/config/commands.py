"""The arguments of the commands beside training: writing, exporting, measuring a style, training a tokenizer."""

from dataclasses import dataclass, field

from stylegen.config.fields import DEVICES, DTYPES, TokenizerArguments, TrainArguments, arg


@dataclass(kw_only=True)
class SourceArguments:
    """Checkpoint"""

    checkpoint: str = arg("best", "of a run directory: best, latest, or the number of a step")
    config_name: str | None = arg(
        None, "folder or hub id with the config.json that a folder of bare weights lacks"
    )
    tokenizer_name: str | None = arg(
        None, "folder or hub id of the tokenizer, where the checkpoint has none; of nanoGPT also its meta.pkl"
    )
    base_model_name_or_path: str | None = arg(
        None, "model that an adapter belongs to (default: the one that it names, or one beside it)"
    )
    dtype: str = arg("float32", "type of the weights", choices=DTYPES)


@dataclass(kw_only=True)
class WriterSourceArguments(SourceArguments):
    """Checkpoint"""

    dtype: str = arg(
        "auto",
        "type of the weights; auto is bfloat16 where the device multiplies it, else float32, which is exact",
        choices=("auto", *DTYPES),
    )


@dataclass(kw_only=True)
class WritingArguments:
    """Writing"""

    prompt: list[str] = arg(
        [], "text to go on from; several are several texts (default: start at <|endoftext|>)"
    )
    prompt_file: str | None = arg(
        None,
        "UTF-8 file: .jsonl with `prompt` (and `completion`, the true one) in each row, else one prompt a line",
    )
    num_return_sequences: int = arg(1, "texts for each prompt")
    num_samples: int | str | None = arg(
        None,
        "texts in all from one prompt or none, instead; inf writes to a file until it is stopped",
        choices=("inf",),
    )
    max_new_tokens: int = arg(
        200, "tokens to write at most; beyond the model's context a sliding window goes on"
    )
    temperature: str = arg(
        "0.8", "divides the logits: below 1 safer, above 1 wilder, 0 greedy; 0.7,1.0 writes with each of them"
    )
    top_k: int = arg(0, "draw from the k likeliest tokens only; 0 is off")
    top_p: float = arg(1.0, "draw from the likeliest tokens that sum to this probability; 1 is off")
    min_p: float = arg(0.0, "drop tokens less likely than this fraction of the likeliest; 0 is off")
    repetition_penalty: float = arg(1.0, "above 1 makes tokens already there less likely; 1 is off")
    num_beams: int = arg(1, "beam search over this many beams instead of drawing; needs temperature 0")
    stop: list[str] = arg([], "a text ends before the first of these strings")
    bad_words: list[str] = arg([], "strings that are never written")
    seed: int = arg(0, "the same seed writes the same texts, in float32 whatever the batch size")
    batch_size: int = arg(8, "texts written at a time")
    output: str | None = arg(
        None,
        "write to this .txt or .jsonl file instead of the terminal; the same command goes on with a .jsonl",
    )
    overwrite_output: bool = arg(False, "begin the output file anew")
    stream: bool = arg(False, "show the text as it is written")
    interactive: bool = arg(False, "write and answer in turns; /help lists what can be said")
    compare: str | None = arg(
        None, "write the same prompts from each of the checkpoints, side by side into this .html file"
    )
    device: str = arg("auto", "where to run; auto takes a GPU if there is one", choices=DEVICES)
    debug: bool = arg(False, "show the traceback of an error")


@dataclass(kw_only=True)
class GenerateArguments(WritingArguments, WriterSourceArguments):
    """All arguments of generate.py."""

    GROUPS = (WriterSourceArguments, WritingArguments)

    checkpoints: list[str] = field(default_factory=list)

    @property
    def temperatures(self) -> list[float]:
        """The temperatures to write with. Raises ValueError for what is no number."""
        return [float(word) for word in self.temperature.split(",")]

    @property
    def texts_per_prompt(self) -> float:
        """How many texts each prompt is to have at each temperature; math.inf if there is no end."""
        return float(self.num_samples or self.num_return_sequences)


@dataclass(kw_only=True)
class ExportOptions:
    """Export"""

    debug: bool = arg(False, "show the traceback of an error")


@dataclass(kw_only=True)
class ExportArguments(ExportOptions, SourceArguments):
    """All arguments of `python -m stylegen.export`."""

    GROUPS = (SourceArguments, ExportOptions)

    paths: list[str] = field(default_factory=list)  # the checkpoint, and the folder to write


@dataclass(kw_only=True)
class StyleOptions:
    """Style"""

    train: list[str] = arg([], "the training text: files, folders or globs, as train_file")
    validation: list[str] = arg(
        [], "unseen text of the author (default: the last tenth of the training text)"
    )
    texts: list[str] = arg(
        [], "what to measure, one system a file: .jsonl of generate.py, or .txt with ==== between its texts"
    )
    start_model: str | None = arg(None, "model before fine-tuning: its perplexity of the texts is told too")
    seed: int = arg(0, "seed of the bootstrap intervals")
    output: str | None = arg(None, "write the figures to this .json file too")
    debug: bool = arg(False, "show the traceback of an error")


@dataclass(kw_only=True)
class StyleArguments(StyleOptions):
    """All arguments of `python -m stylegen.style`."""

    GROUPS = (StyleOptions,)


@dataclass(kw_only=True)
class ReportOptions:
    """W&B Report"""

    run_dirs: list[str] = arg([], "the run directories")
    wandb: bool = arg(False, "publish a W&B Report too, or update it")
    entity: str | None = arg(None, "user or team that it belongs to (default: WANDB_ENTITY, else your own)")
    project: str | None = arg(None, "project of it (default: WANDB_PROJECT, else that of the runs)")
    dry_run: str | None = arg(None, "write it into this JSON file, send nothing")
    debug: bool = arg(False, "show where in the code an error came from")


@dataclass(kw_only=True)
class ReportArguments(ReportOptions):
    """All arguments of `python -m stylegen.report`."""

    GROUPS = (ReportOptions,)


@dataclass(kw_only=True)
class TokenizerOutputArguments:
    """Text and output"""

    text_column: str | None = arg(
        None, "column of a table that holds the text (default: `text`, else the first one)"
    )
    output_dir: str | None = arg(
        None, "write the trained tokenizer here, for --tokenizer_name (default: only measure)"
    )
    debug: bool = arg(False, "show the traceback of an error")


@dataclass(kw_only=True)
class TokenizerCommandArguments(TokenizerOutputArguments, TokenizerArguments):
    """All arguments of `python -m stylegen.tokenizer`."""

    GROUPS = (TokenizerArguments, TokenizerOutputArguments)

    files: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class PlanOptions:
    """Plan"""

    gpus: int = arg(1, "GPUs, on all machines together")
    gpus_per_node: int = arg(8, "GPUs of one machine")
    gpu: str = arg(
        "h100", "which GPU, as a100, h100, rtx4090 or mi300x (one it does not know is answered with all)"
    )
    mfu: float = arg(0.4, "assumed part of the GPUs' peak that the training makes use of")
    network_gbit: float = arg(400.0, "Gbit/s between a machine and the others")


@dataclass(kw_only=True)
class PlanArguments(PlanOptions, TrainArguments):
    """All arguments of `python -m stylegen.plan`."""

    GROUPS = (PlanOptions, *TrainArguments.GROUPS)  # type: ignore[assignment]  # one more
