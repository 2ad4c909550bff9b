"""What wandb keeps of a run on this machine, read back from its own files."""

import json
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_records(folder: Path) -> list:
    """The records of an offline run: a LevelDB log of protobuf messages in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    content, place, records, parts = path.read_bytes(), 7, [], b""  # a header of 7 bytes
    while place + 7 <= len(content):
        room = 32768 - place % 32768
        checksum, length, kind = struct.unpack("<IHB", content[place : place + 7]) if room >= 7 else (0, 0, 0)
        if kind == 0:  # the end of a block is padded with zeros
            place += room
            continue
        data = content[place + 7 : place + 7 + length]
        if len(data) < length:  # not yet written to its end
            break
        assert zlib.crc32(data, zlib.crc32(bytes([kind]))) == checksum
        place += 7 + length
        parts += data
        if kind in (1, 4):  # the whole record, or its last part
            records.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return records


def finished_run(folder: Path) -> list:
    """The records of a run that has ended; wandb's own process may still be writing when `finish` returns."""
    for _ in range(200):
        records = read_records(folder)
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.1)
    raise TimeoutError(f"no end of the run in {folder}: {len(records)} records")


def offline_runs(folder: Path) -> list[list]:
    """The records of each start, in order."""
    runs = [finished_run(path) for path in folder.glob("offline-run-*")]
    return sorted(
        runs, key=lambda records: next(r.run.start_time.ToNanoseconds() for r in records if r.HasField("run"))
    )


def history(records: list) -> list[dict]:
    """The logged rows; what is logged of a table or an image is a dictionary."""
    return [_values(record.history.item) for record in records if record.HasField("history")]


def config_of(records: list) -> dict[str, Any]:
    """The configuration of a life, as the last word on each key was."""
    config: dict[str, Any] = {}
    for record in records:
        for source in ("run", "config"):
            if record.HasField(source):
                updated = (record.run.config if source == "run" else record.config).update
                config |= _values(updated)
    return config


def summary_of(records: list) -> dict[str, Any]:
    """What a life wrote into the summary by itself."""
    summary: dict[str, Any] = {}
    for record in records:
        if record.HasField("summary"):
            summary |= _values(record.summary.update)
    return summary


def axes_of(records: list) -> dict[str, str]:
    """metric or pattern -> the metric that it is drawn over, "" for one that is an axis."""
    return {
        record.metric.name or record.metric.glob_name: record.metric.step_metric
        for record in records
        if record.HasField("metric")
    }


def alerts_of(records: list) -> list[tuple[str, str, str]]:
    """(title, level, text) of each alert."""
    alerts = [record.alert for record in records if record.HasField("alert")]
    return [(alert.title, alert.level, alert.text) for alert in alerts]


def artifacts_of(records: list) -> Iterator[tuple[str, list[str], list[str]]]:
    """(name, aliases, names of files) of each artifact of type model."""
    for record in records:
        if record.HasField("request") and record.request.HasField("log_artifact"):
            artifact = record.request.log_artifact.artifact
        elif record.HasField("artifact"):
            artifact = record.artifact
        else:
            continue
        if artifact.type == "model":
            files = sorted(entry.path for entry in artifact.manifest.contents)
            yield artifact.name, list(artifact.aliases), files


def tables_of(folder: Path, records: list) -> list[tuple[int, list[list[Any]]]]:
    """(step, rows) of each table of samples that a life in `folder` has logged."""
    return [
        (
            row["train/global_step"],
            json.loads((folder / "files" / row["samples"]["path"]).read_text())["data"],
        )
        for row in history(records)
        if "samples" in row
    ]


def _values(items: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in items:
        *outer, name = item.nested_key or [item.key]
        inside = values
        for key in outer:
            inside = inside.setdefault(key, {})
        inside[name] = json.loads(item.value_json)
    return values
