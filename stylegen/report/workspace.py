"""W&B Reports: `python -m stylegen.report RUN_DIR... --wandb` publishes one, or updates the one that it has published.

A report finds itself again by a key in its description, made from the ids of its runs: so it is found from any machine,
and a copy of a run directory holds nothing that is not of the run.
"""

import hashlib
import importlib.util
import os
import re
import ssl
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from stylegen.config import RunError, UsageError, first_line
from stylegen.config.privacy import redacted
from stylegen.report.record import RunRecord
from stylegen.report.workspace_words import Entry, headline
from stylegen.tracking.wandb_run import sync_line

ENTITY, PROJECT_ID = "ENTITY", "PROJECT_ID"  # what stands in a dry run for what only the server knows


def publish(
    records: list[RunRecord], *, entity: str | None, project: str | None, dry_run: Path | None = None
) -> str:
    """Publish a W&B Report of one run or several; returns its address.

    entity   user or team (default: WANDB_ENTITY, else that of who is logged in)
    project  (default: WANDB_PROJECT, else that of the runs)
    dry_run  write the report as JSON into this file instead, without a server; its path is returned

    Raises UsageError for what the user can mend, RunError if the server does not take the report.
    """
    for package in ("wandb", "wandb_workspaces"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(
                f'--wandb needs {package.replace("_", "-")}, which is not installed; pip install "stylegen[report]"'
            )
    entries = _entries(records)
    project = project or os.environ.get("WANDB_PROJECT") or _project(records)
    entity = entity or os.environ.get("WANDB_ENTITY")
    if dry_run is not None:
        return _write(entries, entity or ENTITY, project, dry_run)
    api = _log_in()
    try:
        entity = entity or api.default_entity or _no_entity()
        _find_runs(api, entries, entity, project)
        return _save(api, entries, entity, project)
    except (UsageError, RunError):
        raise
    except Exception as error:
        raise RunError(f"wandb did not take the report: {redacted(first_line(error))}") from error


# --- what is asked for


def _entries(records: list[RunRecord]) -> list[Entry]:
    """The runs with the ids and names that they have on wandb. Raises UsageError for one that was never sent there."""
    runs: dict[str, RunRecord] = {}
    for record in records:
        path = record.directory / "wandb_run_id"
        id_ = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        if not id_:
            raise UsageError(
                f"{record.directory} is not on wandb, it has no wandb_run_id; train with --report_to wandb"
            )
        runs.setdefault(id_, record)
    names = {id_: str(record.settings.get("run_name") or record.name) for id_, record in runs.items()}
    count = Counter(names.values())
    return [
        Entry(record, id_, names[id_] if count[names[id_]] == 1 else f"{names[id_]} ({id_})")
        for id_, record in runs.items()
    ]


def _project(records: list[RunRecord]) -> str:
    projects = list(dict.fromkeys(str(record.settings.get("project", "stylegen")) for record in records))
    if len(projects) > 1:
        raise UsageError(
            f"the runs are of different projects ({', '.join(projects)}), and a report is of one; leave some out, or "
            f"say with --project where all of them are"
        )
    return projects[0]


def _no_entity() -> str:
    raise UsageError("wandb names no entity for who is logged in; give --entity")


# --- the server


def _log_in() -> Any:
    import wandb

    address = os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url
    if trouble := _unreachable(address):
        raise RunError(
            f"wandb at {address} cannot be reached ({trouble}); the local report is written, try again later"
        )
    try:
        return wandb.Api()
    except wandb.errors.AuthenticationError as error:
        answer = getattr(error.__cause__, "response", None)
        if error.__cause__ is not None and getattr(answer, "http_status", None) not in (401, 403):
            raise RunError(
                f"wandb at {address} does not work: {redacted(first_line(error))}; try again later"
            ) from error
        raise UsageError(
            f"wandb at {address} does not accept the key; run `wandb login --relogin`, or set WANDB_API_KEY"
        ) from error
    except wandb.errors.UsageError as error:
        raise UsageError("not logged in to wandb; run `wandb login`, or set WANDB_API_KEY") from error


def _unreachable(address: str) -> str | None:
    """Why there is no use in asking a server; None if it answers.

    The library asks again and again for twenty seconds, and its process may still be at it when ours wants to end.
    """
    try:
        urllib.request.urlopen(address, timeout=10).close()
    except urllib.error.HTTPError as error:  # it answers; what it thinks of its first page is all the same
        return f"it answers {error.code}" if error.code >= 500 else None
    except OSError as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # the library may know of other certificates
            return str(reason)
    return None


def _find_runs(api: Any, entries: list[Entry], entity: str, project: str) -> None:
    """Raise UsageError unless the server has the project and each run."""
    try:
        there = {
            run.id
            for run in api.runs(f"{entity}/{project}", {"name": {"$in": [each.id for each in entries]}})
        }
    except ValueError as error:
        raise UsageError(
            f"wandb has no project {entity}/{project}, or none that you may see; name it with --entity and --project"
        ) from error
    for entry in entries:
        if entry.id not in there:
            folder = entry.record.directory
            sync = sync_line(folder) or f"wandb sync wandb/offline-run-*-{entry.id}"
            raise UsageError(
                f"{folder} (run {entry.id}) is not in {entity}/{project} on wandb; name where it is with --entity and "
                f"--project, or if it was offline, send it first: {sync}"
            )


def _save(api: Any, entries: list[Entry], entity: str, project: str) -> str:
    """Save a new report, or the one that there is with new content; returns its address."""
    report = _report(entries, entity, project, (entity, project))
    before = next(
        (each for each in api.reports(f"{entity}/{project}") if _key(entries) in (each.description or "")),
        None,
    )
    if before is not None:
        report.id = before.id
        # Else what people have said about it would be gone.
        report._discussion_threads = before.spec.get("discussionThreads", [])
    report.save()
    # As the library gives it, a title with signs in it makes an address that does not open.
    slug = re.sub(r"\W+", "-", report.title).strip("-")
    return f"{report.url.split('/reports/', 1)[0]}/reports/{slug}--{report.id.rstrip('=')}"


# --- the report


def _report(entries: list[Entry], entity: str, project: str, place: tuple[str, str]) -> Any:
    import wandb_workspaces.reports.v2 as wr

    from stylegen.report.workspace_page import Page

    page = Page(entries, place)
    return wr.Report(
        entity=entity, project=project, title=page.title, blocks=page.blocks(),
        description=f"{headline(entries)} Written by stylegen, which finds this page by its key, {_key(entries)}, and "
        f"updates it when the same runs are reported again.",
    )  # fmt: skip


def _key(entries: list[Entry]) -> str:
    """The same for the same runs, in whatever order."""
    ids = "\n".join(sorted(entry.id for entry in entries))
    return f"stylegen-{hashlib.sha256(ids.encode()).hexdigest()[:12]}"


def _write(entries: list[Entry], entity: str, project: str, path: Path) -> str:
    """Write what `save` would send. A set of runs asks the server for its project's id, unless it names no project."""
    from wandb_workspaces.reports.v2 import internal

    model = _report(entries, entity, project, ("", ""))._to_model()
    for block in model.spec.blocks:
        if isinstance(block, internal.PanelGrid):
            for runset in block.metadata.run_sets:
                runset.project = internal.Project(entity_name=entity, name=project, id=PROJECT_ID)
    try:
        path.write_text(
            model.model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n", encoding="utf-8"
        )
    except OSError as error:
        raise UsageError(
            f"--dry_run {path} cannot be written: {error.strerror}; name another file"
        ) from error
    return str(path)
