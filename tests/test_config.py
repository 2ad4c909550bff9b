"""Arguments: precedence, types, alternatives, old names, messages. All of it without torch."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from stylegen.config import (
    ExportArguments,
    GenerateArguments,
    ReportArguments,
    StyleArguments,
    TrainArguments,
    UsageError,
    check_arguments,
    dump_arguments,
    parse_arguments,
    resolve_arguments,
    run_command,
)
from stylegen.config.retired import RETIRED
from stylegen.generate.plan import DECIDING

PRESETS = sorted((ROOT / "configs").glob("*.yaml"))


def parse(*argv: str) -> TrainArguments:
    arguments = parse_arguments(TrainArguments, argv, positional="preset", usage="")
    check_arguments(arguments)
    return arguments


def parse_writing(*argv: str) -> GenerateArguments:
    arguments = parse_arguments(GenerateArguments, argv, positional="checkpoints", usage="")
    check_arguments(arguments)
    return arguments


@pytest.fixture
def preset(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "preset.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.name)
def test_every_preset_loads_and_says_what_it_was_measured_on(path, monkeypatch):
    arguments = parse(str(path))
    assert resolve_arguments(arguments, world_size=1).total_batch_size
    assert re.search(r"[Mm]easured", path.read_text())


def test_every_field_is_read_somewhere():
    code = (
        "\n".join(
            path.read_text() for path in (ROOT / "stylegen").rglob("*.py") if path.parent.name != "config"
        )
        + (ROOT / "stylegen/config/checks.py").read_text()
    )
    for cls in (TrainArguments, GenerateArguments, ExportArguments, StyleArguments, ReportArguments):
        unread = [
            f.name for f in dataclasses.fields(cls) if not re.search(rf"(arguments|source)\.{f.name}\b", code)
        ]
        # Those of DECIDING are read by their names, into every row; two through properties of fields.py.
        elsewhere = ("debug", "overwrite_cache", "num_return_sequences", "temperature", *DECIDING)
        assert [name for name in unread if name not in elsewhere] == []
    # `--debug` is looked for in the raw command line, since it must work when that does not parse.
    assert '"--debug" in arguments' in (ROOT / "stylegen/config/errors.py").read_text()


def test_command_line_goes_before_preset_and_preset_before_default(preset):
    path = preset("train_file: a.txt\nseed: 7\nlearning_rate: 2e-4\n")
    arguments = parse(path, "--seed", "8")
    assert (arguments.seed, arguments.learning_rate, arguments.logging_steps) == (8, 2e-4, 10)


def test_numbers_in_yaml_are_coerced_to_the_field_type(preset):
    arguments = parse(
        preset("train_file: a.txt\nlearning_rate: 1e-4\nmax_train_steps: 1e3\nweight_decay: 1\n")
    )
    assert arguments.learning_rate == 1e-4
    assert arguments.max_train_steps == 1000 and isinstance(arguments.max_train_steps, int)
    assert isinstance(arguments.weight_decay, float)


@pytest.mark.parametrize(
    "spelling", ["--block_size 64", "--block-size 64", "--block-size=64", "--block_size=64"]
)
def test_hyphens_and_underscores_are_the_same(spelling):
    assert parse("--train_file", "a.txt", *spelling.split()).block_size == 64


def test_hyphens_in_a_value_stay():
    assert parse("--train-file=my-file.txt").train_file == ["my-file.txt"]


def test_overrides_are_read_from_text_and_from_a_mapping(preset):
    expected = {"n_layer": 4, "resid_pdrop": 0.5, "scale_attn_weights": False, "layer_norm_epsilon": 1e-5}
    text = "n_layer=4,resid_pdrop=0.5,scale_attn_weights=false,layer_norm_epsilon=1e-5"
    assert parse("--train_file", "a", "--config_overrides", text).config_overrides == expected
    mapping = "{n_layer: 4, resid_pdrop: 0.5, scale_attn_weights: false, layer_norm_epsilon: 0.00001}"
    assert parse(preset(f"train_file: a\nconfig_overrides: {mapping}")).config_overrides == expected


@pytest.mark.parametrize(
    ("cli", "gone"),
    [
        (("--max_train_steps", "5"), "num_train_epochs"),
        (("--validation_file", "v.txt"), "validation_split_percentage"),
        (("--train_file", "mine.txt"), "dataset_name"),
        (("--prompt_file", "p.txt", "--completion_file", "c.txt"), "dataset_name"),
        (
            "--prompt_file p --completion_file c --validation_prompt_file p --validation_completion_file c".split(),
            "validation_split_percentage",
        ),
        (("--model_name_or_path", "gpt2"), "train_tokenizer"),
        (("--model_name_or_path", "gpt2"), "config_overrides"),
        (("--tokenizer_name", "gpt2"), "vocab_size"),
        (("--total_batch_size", "16"), "gradient_accumulation_steps"),
    ],
)
def test_an_alternative_on_the_command_line_replaces_that_of_the_preset(preset, cli, gone):
    path = preset(
        "dataset_name: shakespeare\nnum_train_epochs: 2\nvalidation_split_percentage: 10\ntrain_tokenizer: bpe\n"
        "vocab_size: 1000\nconfig_overrides: n_layer=2\ngradient_accumulation_steps: 4\n"
    )
    assert not getattr(parse(path, *cli), gone)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--num_train_epochs 2 --max_train_steps 5", "both max_train_steps and num_train_epochs"),
        (
            "--validation_file v --validation_split_percentage 5",
            "both validation_file and validation_split_percentage",
        ),
        ("--dataset_name shakespeare", "both dataset_name and train_file"),
        (
            "--model_name_or_path gpt2 --config_overrides n_layer=2",
            "both model_name_or_path and config_overrides",
        ),
        ("--tokenizer_name gpt2 --train_tokenizer bpe", "both tokenizer_name and train_tokenizer"),
        (
            "--total_batch_size 32 --gradient_accumulation_steps 3",
            r"8 x 1 processes x gradient_accumulation_steps 3 = 24",
        ),
        ("--total_batch_size 20", r"not a multiple .* = 8; the nearest that work: 16 or 24"),
        (
            "--block_size 2048 --config_overrides n_positions=1024",
            "block_size is 2048, but the model has 1024 positions",
        ),
        ("--vocab_size 100", "vocab_size is 100"),
        ("--learning_rate 0", "learning_rate is 0.0, but must be above 0"),
        ("--per_device_train_batch_size 0", "must be at least 1"),
        ("--validation_split_percentage 100", "must be between 0 and 100"),
        ("--seed yes", "seed in the command line is 'yes', but must be a whole number"),
        ("--eval_steps often", "must be a whole number or epoch"),
        ("--mixed_precision bf32", "must be auto or no or bf16 or fp16"),
        ("--num_train_epochs", "expected one argument"),
        ("--report_to tensorbord", "report_to is 'tensorbord'"),
        ("--batch_sise 4", "unknown flag --batch_sise"),
        ("--learning_rat 4", r"unknown flag --learning_rat; did you mean --learning_rate\?"),
        ("--warmup 4", "unknown flag --warmup"),
        ("--resume True", "unknown flag --resume"),
        ("--prompt_column p", "prompt_column needs completion_column as well: a pair has two sides"),
        ("--validation_completion_file p", "validation_completion_file needs validation_prompt_file as well"),
        ("--prompt_file p --completion_file c", "both prompt_file and train_file"),
        ("--text_column t --prompt_column p", "both text_column and prompt_column"),
        ("--completion_only_loss", "completion_only_loss needs pairs"),
        (
            "--completion_only_loss --prompt_column p --completion_column c --packing stream",
            "completion_only_loss needs pairs .* and --packing pad or document",
        ),
        (
            "--validation_prompt_file p --validation_completion_file c",
            "validation_prompt_file is for pairs; give --validation_file, or pairs to train on too",
        ),
        ("--detokenize", "detokenize is for pairs of prompt and completion; give pairs, or leave it out"),
        ("--max_completion_words 5", "max_completion_words is for pairs"),
        ("--random_windows 5 --packing pad", "random_windows adds windows to a stream of text"),
        (
            "--random_windows 5 --prompt_column p --completion_column c",
            "random_windows adds windows to a stream",
        ),
        ("--random_windows 5 --max_train_samples 5", "random_windows draws from the whole text"),
        ("--random_windows -1", "random_windows is -1, but must be 0 or more"),
        ("--streaming", "both streaming and train_file"),
        ("--packing blocks", "must be stream or document or pad"),
    ],
)
def test_what_cannot_work_is_refused_with_a_remedy(argv, message):
    with pytest.raises(UsageError, match=message):
        parse("--train_file", "a.txt", *argv.split())


def test_only_datasets_are_streamed_on_request():
    with pytest.raises(
        UsageError, match="streaming is for hub datasets; give --dataset_name, or leave it out"
    ):
        parse("--dataset_name", "shakespeare", "--streaming")


def test_no_text_is_refused():
    with pytest.raises(UsageError, match="no text to train on; give --train_file"):
        parse()


def test_ctrl_c_where_nothing_can_be_saved_is_no_traceback(capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    assert run_command(interrupted, []) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match="report_to asks for wandb, which is not installed; pip install wandb"
    ):
        parse("--train_file", "a.txt", "--report_to", "wandb")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", r"unknown key 'learning_rat' in preset .*; did you mean learning_rate\?"),
        ("seed: [1, 2]", "seed in preset"),
        ("- seed", "is not a flat list"),
        ("seed: 1\n bad: : 2", "is not valid YAML at line 2"),
        ("seed:", "seed in preset .* needs a value"),
    ],
)
def test_a_bad_preset_is_refused_by_name(preset, text, message):
    with pytest.raises(UsageError, match=message):
        parse(preset(text))


def test_a_missing_preset_is_refused():
    with pytest.raises(UsageError, match=r"preset no\.yaml does not exist"):
        parse("no.yaml")


@pytest.mark.parametrize(
    "flag", ["--token", "--hub_token", "--use_auth_token", "--wandb_api_key", "--my_secret_token"]
)
def test_no_message_echoes_a_secret(flag):
    for argv in ((flag, "hf_s3cr3t"), (f"{flag}=hf_s3cr3t",)):
        with pytest.raises(UsageError) as caught:
            parse("--train_file", "a.txt", *argv)
        assert "s3cr3t" not in str(caught.value)


def test_old_command_line_of_run_clm_is_understood(capsys):
    arguments = parse(
        *"--train_file a.txt --do_train --do_eval --max_steps 20 --warmup_steps 5 --save_steps 10 --bf16 "
        "--overwrite_output_dir --evaluation_strategy steps --eval_steps 10 --optim adamw_torch".split()
    )
    assert (arguments.max_train_steps, arguments.num_warmup_steps, arguments.checkpointing_steps) == (
        20,
        5,
        10,
    )
    assert (arguments.mixed_precision, arguments.eval_steps, arguments.optim) == ("bf16", 10, "adamw")
    assert arguments.overwrite_output_dir
    warnings = capsys.readouterr().err
    assert "warning: max_steps in the command line is now --max_train_steps" in warnings
    assert "do_train" not in warnings


def test_old_command_line_of_run_clm_no_trainer_is_understood():
    arguments = parse(*"--train_file a.txt --with_tracking --report_to wandb --num_warmup_steps 3".split())
    assert (arguments.report_to, arguments.num_warmup_steps) == (["wandb"], 3)
    assert resolve_arguments(parse("--train_file", "a", "--with_tracking"), 1).report_to == [
        "wandb",
        "tensorboard",
    ]


@pytest.mark.parametrize("flags", ["--do_eval", "--do_eval True"])
def test_evaluation_alone_takes_no_step(flags):
    assert parse("--train_file", "a.txt", *flags.split()).max_train_steps == 0


def test_both_evaluation_and_training_train():
    assert parse("--train_file", "a.txt", "--do_train", "--do_eval").max_train_steps is None


@pytest.mark.parametrize("value", ["-1", "30"])
def test_max_steps_minus_one_means_epochs(value):
    assert parse("--train_file", "a.txt", "--max_steps", value).max_train_steps == (
        None if value == "-1" else 30
    )


def test_old_names_in_a_preset_are_understood(preset):
    arguments = parse(preset("train_file: a\nmax_steps: 7\nbf16: true\nwarmup_ratio: 0.1\n"))
    assert (arguments.max_train_steps, arguments.mixed_precision, arguments.num_warmup_steps) == (
        7,
        "bf16",
        0.1,
    )


def test_no_retired_name_hides_one_of_ours():
    assert set(RETIRED).isdisjoint(field.name for field in dataclasses.fields(TrainArguments))


def test_defaults_depend_on_where_the_model_comes_from():
    scratch = resolve_arguments(parse("--train_file", "a"), world_size=2)
    assert (scratch.model_type, scratch.train_tokenizer, scratch.learning_rate) == ("gpt2", "bpe", 1e-3)
    assert (scratch.total_batch_size, scratch.gradient_accumulation_steps, scratch.num_train_epochs) == (
        16,
        1,
        3.0,
    )
    assert (
        resolve_arguments(parse("--train_file", "a", "--optim", "muon"), world_size=2).learning_rate == 1e-2
    )
    tuned = resolve_arguments(parse("--train_file", "a", "--model_name_or_path", "gpt2"), world_size=1)
    assert (tuned.model_type, tuned.train_tokenizer, tuned.learning_rate) == (None, None, 5e-5)


def test_total_batch_size_gives_the_accumulation():
    arguments = resolve_arguments(parse("--train_file", "a", "--total_batch_size", "64"), world_size=2)
    assert arguments.gradient_accumulation_steps == 4


@pytest.mark.parametrize(
    "flags",
    [
        "--validation_file v",
        "--model_name_or_path gpt2",
        "--max_train_steps 9 --train_tokenizer char",
        "--document_separator none --save_total_limit none",  # nothing, where the default is something
        "--prompt_column p --completion_column c --completion_only_loss --detokenize --special_tokens x y",
    ],
)
def test_dumped_arguments_are_a_preset_that_repeats_them(tmp_path, flags):
    first = resolve_arguments(parse("--train_file", "a", "--report_to", "none", *flags.split()), world_size=1)
    path = tmp_path / "config.yaml"
    path.write_text(dump_arguments(first))
    assert resolve_arguments(parse(str(path)), world_size=1) == first


def test_dump_does_not_repeat_the_deletion_of_an_earlier_run():
    dumped = yaml.safe_load(dump_arguments(parse("--train_file", "a", "--overwrite_output_dir")))
    assert "overwrite_output_dir" not in dumped


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("", "which model|required"),
        ("m --prompt a --prompt_file b", "both prompt and prompt_file"),
        ("m --num_beams 4", "add --temperature 0"),
        ("m --temperature 0 --num_return_sequences 3", "writes the same text 3 times"),
        ("m --output x.pdf", "must end in .txt or .jsonl"),
        ("m --top_p 0", "top_p is 0.0, but must be above 0"),
        ("m --stream --num_beams 2 --temperature 0", "stream cannot show a beam search"),
        ("m --promt x", r"unknown flag --promt; did you mean --prompt\?"),
    ],
)
def test_what_cannot_be_written_is_refused(argv, message):
    with pytest.raises(UsageError, match=message):
        parse_writing(*argv.split())


def test_output_directory_that_is_a_file_or_below_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="is a file; choose another place"):
            parse("--train_file", "a", "--output_dir", str(place))


@pytest.mark.parametrize(
    "argv", [["--help"], ["--lerning_rate", "1"], ["missing.yaml"], ["--train_file", "no.txt"]]
)
def test_nothing_heavy_is_imported_before_the_arguments_are_checked(argv):
    code = (
        "import sys\nfrom stylegen.train import main\n"
        f"try:\n    main({argv!r})\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'accelerate', 'numpy', 'matplotlib', 'wandb'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_help_names_every_flag_with_its_default_or_meaning(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    shown = capsys.readouterr().out
    for field in dataclasses.fields(TrainArguments):
        assert f"--{field.name} " in shown
    assert "default: linear" in shown and "(default: 0.999)" in shown
    assert "--do_train" not in shown  # retired names are understood, not advertised


def test_paths_of_presets_are_those_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    for path in PRESETS:
        assert path.name in readme, f"README.md does not mention {path.name}"
    assert Path(ROOT / "configs/quickstart.yaml") in PRESETS
