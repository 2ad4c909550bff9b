"""Command line and preset -> one checked dataclass, without importing anything heavy.

Precedence: defaults < preset < command line. Alternatives (epochs or steps, a pretrained model or a new one)
conflict only inside one source; one given on the command line replaces the preset's.
"""

import argparse
import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from stylegen import __version__
from stylegen.config.errors import UsageError
from stylegen.config.privacy import refuse_secrets, refuse_secrets_in_preset
from stylegen.config.retired import RETIRED, translate_retired

T = TypeVar("T")

Side = tuple[str, ...]
TRAINED_TOKENIZER = ("train_tokenizer", "vocab_size", "normalizer", "min_frequency", "special_tokens")
DATASET = ("dataset_name", "dataset_config_name", "streaming")
PAIR_FILES = ("prompt_file", "completion_file")
VALIDATION_FILES = ("validation_file",)
VALIDATION_PAIRS = ("validation_prompt_file", "validation_completion_file")
# Each row: two ways to say the same thing. The first name of a side is the one that messages use.
ALTERNATIVES: tuple[tuple[Side, Side], ...] = (
    (("max_train_steps",), ("num_train_epochs",)),
    (VALIDATION_FILES, ("validation_split_percentage",)),
    (VALIDATION_PAIRS, ("validation_split_percentage",)),
    (VALIDATION_PAIRS, VALIDATION_FILES),
    (DATASET, ("train_file",)),
    (DATASET, PAIR_FILES),
    (PAIR_FILES, ("train_file",)),
    (PAIR_FILES, ("text_column", "prompt_column", "completion_column")),
    (("text_column",), ("prompt_column", "completion_column")),
    (
        ("model_name_or_path", "model_revision", "gguf_file"),
        ("model_type", "config_name", "config_overrides", *TRAINED_TOKENIZER),
    ),
    (("tokenizer_name",), TRAINED_TOKENIZER),
)
# These two may stand together as long as the arithmetic agrees, which only the world size can tell.
BATCH_SIZES: tuple[Side, Side] = (("total_batch_size",), ("gradient_accumulation_steps",))


def parse_arguments(cls: type[T], argv: Sequence[str], *, positional: str | None, usage: str) -> T:
    """Parse a command line into `cls`.

    positional  name of the one positional argument, "preset" for a YAML file of the same names, or a field
    Raises UsageError for anything wrong: unknown or misspelt names, wrong types, alternatives given twice.
    `--help` and `--version` print and exit.
    """
    refuse_secrets(argv)  # first of all: every other message may show what it is about
    parser = _build_parser(cls, positional, usage)
    given, unknown = parser.parse_known_args(_underscores(argv))
    from_cli = vars(given)
    preset = from_cli.pop(positional, None) if positional else None
    if unknown:
        _refuse_unknown(unknown, parser)
    if positional and positional != "preset":
        values = _coerce_all(cls, {positional: preset, **from_cli}, "the command line")
        _refuse_conflicts(cls, values, "the command line")
        return cls(**values)
    cli = _coerce_all(cls, translate_retired(from_cli, "the command line"), "the command line")
    return cls(**merge(cls, read_preset(cls, Path(preset)) if preset else {}, cli, preset or ""))


def read_preset(cls: type, path: Path) -> dict[str, Any]:
    """The values of a YAML preset, coerced to the field types. Raises UsageError naming file and key."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"preset {path} does not exist; presets are YAML files such as those in configs/"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"preset {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise UsageError(f"preset {path} is not valid YAML{line}; write one `name: value` a line") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise UsageError(f"preset {path} is not a flat list of `name: value` lines")
    refuse_secrets_in_preset(raw, f"preset {path}")
    values = translate_retired({key.replace("-", "_"): value for key, value in raw.items()}, f"preset {path}")
    names = {field.name for field in dataclasses.fields(cls)}
    for key in values:
        if key not in names:
            raise UsageError(f"unknown key '{key}' in preset {path}{_nearest(key, names)}")
    return _coerce_all(cls, values, f"preset {path}")


def merge(cls: type, preset: dict[str, Any], cli: dict[str, Any], preset_name: str) -> dict[str, Any]:
    """Lay the command line over the preset; what the command line replaces leaves with its alternatives."""
    _refuse_conflicts(cls, preset, f"preset {preset_name}")
    _refuse_conflicts(cls, cli, "the command line")
    kept = dict(preset)
    for row in (*ALTERNATIVES, BATCH_SIZES):
        for side, other in (row, row[::-1]):
            if _is_given(cls, cli, side):
                kept = {key: value for key, value in kept.items() if key not in other}
    return {**kept, **cli}


EMPTY: tuple[Any, ...] = (None, [], {})
# What one start was asked to do rather than what the run is; and the accumulation, which total_batch_size
# and the number of processes give.
NOT_DUMPED = (
    "overwrite_output_dir",
    "overwrite_cache",
    "resume_from_checkpoint",
    "debug",
    "gradient_accumulation_steps",
)


def dump_arguments(arguments: Any) -> str:
    """YAML of all arguments that have a value, group by group: itself a preset that repeats the run."""
    text = f"# written by stylegen {__version__}; `run_clm.py` with this file as its preset repeats the run\n"
    for group in arguments.GROUPS:
        values = {
            f.name: value
            for f in dataclasses.fields(group)
            # An empty value says something only where the default is another one.
            if f.name not in NOT_DUMPED
            and ((value := getattr(arguments, f.name)) not in EMPTY or _default(f) not in EMPTY)
        }
        text += f"\n# {group.__doc__}\n" + (
            yaml.safe_dump(values, sort_keys=False, allow_unicode=True) if values else ""
        )
    return text


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(f"{message.replace('argument ', '', 1)}; --help lists the flags")


def _build_parser(cls: Any, positional: str | None, usage: str) -> _Parser:
    parser = _Parser(
        usage=usage,
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=36, width=110),
    )
    hints = typing.get_type_hints(cls)
    if positional:
        nargs = "?" if positional == "preset" else "+" if list in _kinds(hints[positional]) else None
        parser.add_argument(positional, nargs=nargs, help=argparse.SUPPRESS)
    for group_class in cls.GROUPS:
        group = parser.add_argument_group(group_class.__doc__)
        for field in dataclasses.fields(group_class):
            options: dict[str, Any] = {
                "help": _help_text(field),
                "metavar": _metavar(field, hints[field.name]),
            }
            if bool in _kinds(hints[field.name]):
                options |= {"nargs": "?", "const": True}
            elif list in _kinds(hints[field.name]):
                options |= {"nargs": "+"}
            group.add_argument(f"--{field.name}", **options)
    group = parser.add_argument_group("Help")
    group.add_argument("-h", "--help", action="help", help="this text")
    group.add_argument("--version", action="version", version=f"stylegen {__version__}", help="the version")
    if positional == "preset":
        for name in RETIRED:
            parser.add_argument(f"--{name}", nargs="*", help=argparse.SUPPRESS)
    return parser


def _help_text(field: dataclasses.Field) -> str:
    text = field.metadata["help"].replace("%", "%%")
    default = _default(field)
    if "(default" in text or default in (None, [], {}, False):
        return text
    shown = " ".join(repr(item) for item in default) if isinstance(default, list) else default
    return f"{text} (default: {shown})"


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _metavar(field: dataclasses.Field, hint: Any) -> str:
    kinds = _kinds(hint)
    names = {int: "N", float: "X", str: "TEXT", list: "TEXT", dict: "K=V,..."}
    if bool in kinds:
        return "true|false"
    choices = list(field.metadata["choices"])
    return "|".join(([names[int]] if int in kinds else []) + choices) if choices else names[kinds[0]]


def _kinds(hint: Any) -> list[type]:
    """The plain types a field accepts: `int | None` -> [int], `list[str]` -> [list]."""
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return [typing.get_origin(member) or member for member in members if member is not type(None)]


def _underscores(argv: Sequence[str]) -> list[str]:
    """`--block-size=8` -> `--block_size=8`: the two spellings of a flag are the same."""
    spelled = []
    for word in argv:
        name, equals, value = word.partition("=")
        spelled.append(
            name.replace("-", "_").replace("__", "--", 1) + equals + value if word.startswith("--") else word
        )
    return spelled


def _refuse_unknown(words: list[str], parser: _Parser) -> typing.NoReturn:
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    known = {option for action in parser._actions for option in action.option_strings}
    if flags:  # only the name: what follows a misspelt flag may be a secret
        raise UsageError(f"unknown flag {flags[0]}{_nearest(flags[0], known)}; --help lists the flags")
    raise UsageError(
        f"{len(words)} more words than expected; a value with spaces needs quotes, and a preset comes first"
    )


def _nearest(name: str, names: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _is_given(cls: Any, values: dict[str, Any], side: Side) -> bool:
    defaults = {f.name: f.default for f in dataclasses.fields(cls)}
    return any(values.get(name) not in EMPTY and values[name] != defaults[name] for name in side)


def _refuse_conflicts(cls: Any, values: dict[str, Any], source: str) -> None:
    for left, right in ALTERNATIVES:
        if _is_given(cls, values, left) and _is_given(cls, values, right):
            first, second = (next(n for n in side if _is_given(cls, values, (n,))) for side in (left, right))
            raise UsageError(
                f"{source} gives both {first} and {second}; they exclude each other, leave one out"
            )


def _coerce_all(cls: Any, values: dict[str, Any], source: str) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    return {
        name: _coerce(name, value, hints[name], fields[name].metadata.get("choices", ()), source)
        for name, value in values.items()
    }


def _coerce(name: str, value: Any, hint: Any, choices: tuple[str, ...], source: str) -> Any:
    kinds = _kinds(hint)
    optional = isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint)
    if value is None or (optional and value == "none"):
        if optional:
            return None
        raise UsageError(f"{name} in {source} needs a value")
    for kind in kinds:
        try:
            result = _CONVERTERS[kind](value)
        except (ValueError, TypeError):
            continue
        if not choices or result in choices or (kind is int and int in kinds):
            return result
    expected = [_TYPE_NAMES[kind] for kind in kinds if not (kind is str and choices)] + list(choices)
    raise UsageError(f"{name} in {source} is {value!r}, but must be {' or '.join(expected)}")


def _to_bool(value: Any) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    return words[str(value).lower()] if str(value).lower() in words else _fail()


def _to_int(value: Any) -> int:
    if isinstance(value, bool):
        _fail()
    try:
        return int(value) if isinstance(value, (int, str)) else _whole(float(value))
    except ValueError:
        return _whole(float(value))  # 1e3 in YAML arrives as text


def _whole(value: float) -> int:
    return int(value) if value.is_integer() else _fail()


def _to_float(value: Any) -> float:
    return _fail() if isinstance(value, bool) else float(value)


def _to_str(value: Any) -> str:
    if isinstance(value, bool):  # YAML reads a bare `no` as False
        return "true" if value else "no"
    return str(value) if isinstance(value, (str, int, float)) else _fail()


def _to_list(value: Any) -> list[str]:
    return [_to_str(item) for item in value] if isinstance(value, list) else [_to_str(value)]


def _to_dict(value: Any) -> dict[str, Any]:
    """A YAML mapping, a JSON object, or `a=1,b=0.5`."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, str):
        _fail()
    if value.lstrip().startswith("{"):
        return json.loads(value)
    pairs = [item.partition("=") for item in value.split(",") if item.strip()]
    return {key.strip(): _scalar(text) if equals else _fail() for key, equals, text in pairs}


def _scalar(text: str) -> Any:
    value = yaml.safe_load(text)
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _fail() -> typing.NoReturn:
    raise ValueError


_CONVERTERS: dict[type, Any] = {
    bool: _to_bool, int: _to_int, float: _to_float, str: _to_str, list: _to_list, dict: _to_dict,
}  # fmt: skip
_TYPE_NAMES = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text",
    list: "one or several texts", dict: "name=value,name=value or a mapping",
}  # fmt: skip
