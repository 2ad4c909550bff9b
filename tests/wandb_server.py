"""A stand-in for the wandb service on this machine, for tests with the real client.

It answers what wandb 0.31 and wandb-workspaces 0.4 ask for online runs that go on, `wandb sync`, alerts, artifacts that
are logged, sweeps with `wandb agent`, and reports, and keeps it all in plain attributes:

    with WandbServer() as server:
        subprocess.run(command, env={**os.environ, **server.environment})
        assert server.run("demo", "abc").history[-1]["train/global_step"] == 6

It is our reading of the protocol, not the service. What it does not know it answers with an error, and keeps in
`unknown`, so that a test can insist on an empty list.
"""

import base64
import gzip
import itertools
import json
import math
import random
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

Json = dict[str, Any]
KEY = "0123456789" * 4  # any of this length will do
THEN = "2026-01-01T00:00:00"  # when everything was made
STREAMS = {"wandb-history.jsonl": "history", "wandb-events.jsonl": "events", "output.log": "output"}


@dataclass
class StoredRun:
    """A run as the service has it: what was logged, line by line, and what else it was told."""

    entity: str
    project: str
    id: str
    name: str = ""
    group: str | None = None
    job_type: str | None = None
    sweep: str | None = None
    tags: list[str] = field(default_factory=list)
    config: Json = field(default_factory=dict)
    summary: Json = field(default_factory=dict)
    history: list[Json] = field(default_factory=list)
    events: list[Json] = field(default_factory=list)
    output: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    alerts: list[tuple[str, str, str]] = field(default_factory=list)  # title, level, text
    starts: int = 0  # how often a client has said that the run begins or goes on, or has changed
    exit_code: int | None = None
    preempting: bool = False

    @property
    def values(self) -> Json:
        """The configuration as plain values."""
        return {key: each["value"] for key, each in self.config.items() if key != "_wandb"}


@dataclass
class StoredArtifact:
    """One version of an artifact; `is_whole` once all of it has arrived."""

    name: str
    type: str
    aliases: list[str]
    metadata: Json
    files: dict[str, bytes] = field(default_factory=dict)
    is_whole: bool = False


@dataclass
class StoredReport:
    """A report, and how often it was saved."""

    id: str
    entity: str
    project: str
    name: str
    title: str
    description: str
    spec: Json
    saves: int = 0


@dataclass
class StoredSweep:
    """A sweep, and what its agent is still to do."""

    id: str
    entity: str
    project: str
    config: Json
    commands: Iterator[Json]
    state: str = "RUNNING"


class WandbServer:
    """The service, at `url` between `start` and `stop`.

    entity   who its clients are, and where things go that name no entity
    status   what it answers to everything; not 200 to try out how a client takes it
    refused  names of operations that it answers with an error
    """

    def __init__(self, entity: str = "tester"):
        self.entity = entity
        self._lock = threading.RLock()
        self.forget()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._http.handle_error = lambda *request: None  # type: ignore[method-assign]  # a client that has left
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._answers: dict[str, Callable[[Json], Json]] = {
            "Viewer": self._viewer, "GetViewer": self._viewer, "GetDefaultEntity": self._viewer,
            "ServerFeaturesQuery": lambda asked: {"serverInfo": {"features": []}},
            "OrganizationCoreWeaveOrganizationID": lambda asked: {"entity": {"organization": None}},
            "GetProjects": self._projects, "GetProject": self._project, "CreateProject": self._create_project,
            "ProjectInternalId": self._project,
            "UpsertBucket": self._upsert_run, "RunResumeStatus": self._resume_status, "Runs": self._find_runs,
            "CreateRunFiles": self._create_run_files, "NotifyScriptableRunAlert": self._alert,
            "CreateArtifact": self._create_artifact, "CreateArtifactManifest": self._create_manifest,
            "CreateArtifactFiles": self._create_artifact_files, "CommitArtifact": self._commit_artifact,
            "UseArtifact": self._use_artifact, "ArtifactType": lambda asked: {"project": {"artifact": None}},
            "upsertView": self._save_report, "ProjectViews": self._list_reports, "SpecificReport": self._read_report,
            "UpsertSweep": self._upsert_sweep, "SweepWithRuns": self._read_sweep, "GetSweepState": self._read_sweep,
            "CreateAgent": lambda asked: {"createAgent": {"agent": {"id": asked["sweep"]}}},
            "Heartbeat": self._heartbeat,
        }  # fmt: skip

    def __enter__(self) -> "WandbServer":
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> "WandbServer":
        """Answer from now on."""
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def stop(self) -> None:
        """Answer no more."""
        self._http.shutdown()
        self._http.server_close()

    def forget(self) -> None:
        """Be as new: nothing is kept, nothing is refused."""
        self.status, self.refused = 200, set[str]()
        self.projects: set[tuple[str, str]] = set()
        self.runs: dict[tuple[str, str, str], StoredRun] = {}
        self.artifacts: dict[str, StoredArtifact] = {}
        self.reports: dict[str, StoredReport] = {}
        self.sweeps: dict[str, StoredSweep] = {}
        self.operations: list[str] = []  # that clients have asked for, in order
        self.unknown: list[str] = []

    @property
    def environment(self) -> dict[str, str]:
        """What tells a client to come here, logged in."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}

    def run(self, project: str, run_id: str) -> StoredRun:
        """A run of the entity. Raises KeyError."""
        return self.runs[self.entity, project, run_id]

    def add_run(self, project: str, run_id: str, name: str = "") -> StoredRun:
        """A run that is there without a client having sent it."""
        self.projects.add((self.entity, project))
        run = self.runs.setdefault((self.entity, project, run_id), StoredRun(self.entity, project, run_id))
        run.name = name or run.name or run_id
        return run

    # --- requests

    def answer(self, path: str, body: bytes) -> tuple[int, Json]:
        """(status, JSON) to one request."""
        with self._lock:
            if self.status != 200:
                return self.status, {"error": "as told"}
            try:
                return self._answer(path, body)
            except Exception as error:
                # Our reading of the protocol is wrong: told, so that nobody asks again and again.
                self.unknown.append(f"{path}: {error!r}")
                return 400, {"error": repr(error)}

    def _answer(self, path: str, body: bytes) -> tuple[int, Json]:
        if path == "/graphql":
            return self._graphql(json.loads(body))
        if stream := re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", path):
            return 200, self._stream(self.runs[stream[1], stream[2], stream[3]], json.loads(body))
        if upload := re.fullmatch(r"/upload/run/([^/]+)/([^/]+)/([^/]+)/(.+)", path):
            self.runs[upload[1], upload[2], upload[3]].files[upload[4]] = body
            return 200, {}
        if upload := re.fullmatch(r"/upload/artifact/([^/]+)/(.+)", path):
            self.artifacts[upload[1]].files[upload[2]] = body
            return 200, {}
        if path in ("/", "/upload/manifest"):
            return 200, {}
        if not path.startswith("/sdk/otel"):  # how the client itself is doing
            self.unknown.append(path)
        return 404, {}

    def _graphql(self, request: Json) -> tuple[int, Json]:
        named = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        name = request.get("operationName") or (named[1] if named else "")
        self.operations.append(name)
        if name in self.refused:
            return 200, {"errors": [{"message": f"you may not {name}"}]}
        if name not in self._answers:
            self.unknown.append(name or request["query"])
            return 200, {"errors": [{"message": f"the stand-in knows no {name or request['query']}"}]}
        return 200, {"data": self._answers[name](request.get("variables") or {})}

    def _place(self, asked: Json) -> tuple[str, str]:
        """The (entity, project) that a request is about."""
        entity = asked.get("entityName") or asked.get("entity") or self.entity
        project = asked.get("projectName") or asked.get("project") or asked.get("name") or "uncategorized"
        return entity, project

    # --- who is there, projects

    def _viewer(self, asked: Json) -> Json:
        return {"viewer": self._user()}

    def _user(self) -> Json:
        return {
            "id": _id("User", self.entity), "entity": self.entity, "username": self.entity, "name": self.entity,
            "email": f"{self.entity}@localhost", "admin": False, "flags": "{}", "deletedAt": None,
            "teams": {"edges": [{"node": {"name": self.entity}}]}, "apiKeys": {"edges": []},
        }  # fmt: skip

    def _project_node(self, entity: str, project: str) -> Json:
        return {
            "__typename": "Project", "id": _id("Project", project), "internalId": _id("ProjectInternalId", project),
            "name": project, "entityName": entity, "entity": {"id": _id("Entity", entity), "name": entity},
            "createdAt": THEN, "isBenchmark": False, "user": None, "description": "", "access": "USER_READ",
            "views": "{}",
        }  # fmt: skip

    def _projects(self, asked: Json) -> Json:
        nodes = [
            self._project_node(*place) for place in sorted(self.projects) if place[0] == self._place(asked)[0]
        ]
        return {"models": _page(nodes, "PageInfo")}

    def _project(self, asked: Json) -> Json:
        place = self._place(asked)
        return {"project": self._project_node(*place) if place in self.projects else None}

    def _create_project(self, asked: Json) -> Json:
        entity, project = asked["input"]["entityName"], asked["input"]["name"]
        self.projects.add((entity, project))
        node = self._project_node(entity, project)
        return {"result": {"project": node, "model": node, "inserted": True}}

    # --- runs

    def _upsert_run(self, asked: Json) -> Json:
        entity, project = self._place({**asked, "name": None})
        key = entity, project, asked.get("name") or asked["id"]
        is_new = key not in self.runs
        self.projects.add(key[:2])
        run = self.runs.setdefault(key, StoredRun(*key))
        run.starts += 1
        run.name = asked.get("displayName") or run.name or run.id
        run.group, run.job_type = asked.get("groupName") or run.group, asked.get("jobType") or run.job_type
        run.sweep, run.tags = asked.get("sweep") or run.sweep, asked.get("tags") or run.tags
        run.config = json.loads(asked["config"]) if asked.get("config") else run.config
        run.summary = json.loads(asked["summaryMetrics"]) if asked.get("summaryMetrics") else run.summary
        return {"upsertBucket": {"bucket": self._run_node(run), "inserted": is_new}}

    def _run_node(self, run: StoredRun) -> Json:
        state = {None: "running", 0: "finished"}.get(run.exit_code, "failed")
        return {
            "id": _id("Run", run.id), "name": run.id, "displayName": run.name, "description": "", "notes": None,
            "config": json.dumps(run.config), "summaryMetrics": json.dumps(run.summary), "systemMetrics": "{}",
            "historyKeys": None, "historyLineCount": len(run.history), "sweepName": run.sweep, "state": state,
            "group": run.group, "jobType": run.job_type, "tags": run.tags, "commit": None, "readOnly": False,
            "createdAt": THEN, "heartbeatAt": THEN, "user": self._user(), "projectId": 1,
            "project": self._project_node(run.entity, run.project),
        }  # fmt: skip

    def _resume_status(self, asked: Json) -> Json:
        entity, project = self._place({**asked, "name": None})
        run = self.runs.get((entity, project, asked["name"]))
        node = self._project_node(entity, project)
        if run is None:
            return {"model": {**node, "bucket": None}}
        counts = {
            "logLineCount": len(run.output), "eventsLineCount": len(run.events), "eventsTail": "[]",
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "wandbConfig": json.dumps({"t": 1}),
        }  # fmt: skip
        return {"model": {**node, "bucket": {**self._run_node(run), **counts}}}

    def _find_runs(self, asked: Json) -> Json:
        place = self._place(asked)
        if place not in self.projects:
            return {"project": None}
        wanted = json.loads(asked.get("filters") or "{}").get("name", {}).get("$in")
        found = [
            run for run in self.runs.values() if (run.entity, run.project) == place and run.id in (wanted or [run.id])
        ]  # fmt: skip
        runs = {
            "runCount": len(found),
            "readOnly": False,
            "runs": _page([self._run_node(run) for run in found]),
        }
        return {"project": {**self._project_node(*place), **runs}}

    def _stream(self, run: StoredRun, sent: Json) -> Json:
        for name, chunk in (sent.get("files") or {}).items():
            lines, start = chunk["content"], chunk["offset"]
            if name == "wandb-summary.json":
                run.summary = json.loads(lines[-1])
            elif name == "output.log":
                run.output[start : start + len(lines)] = lines
            elif name in STREAMS:
                getattr(run, STREAMS[name])[start : start + len(lines)] = [json.loads(line) for line in lines]
        run.exit_code = sent.get("exitcode", run.exit_code)
        run.preempting = run.preempting or bool(sent.get("preempting"))
        return {"exitcode": None, "limits": {}}

    def _create_run_files(self, asked: Json) -> Json:
        place = "/".join([*self._place(asked), asked["run"]])
        files = [
            {"name": name, "uploadUrl": f"{self.url}/upload/run/{place}/{name}"} for name in asked["files"]
        ]
        return {"createRunFiles": {"runID": _id("Run", asked["run"]), "uploadHeaders": [], "files": files}}

    def _alert(self, asked: Json) -> Json:
        run = self.runs[(*self._place(asked), asked["runName"])]
        run.alerts.append((asked["title"], asked["severity"], asked["text"]))
        return {"notifyScriptableRunAlert": {"success": True}}

    # --- artifacts

    def _create_artifact(self, asked: Json) -> Json:
        given, number = asked["input"], f"artifact-{len(self.artifacts)}"
        self.artifacts[number] = StoredArtifact(
            given["artifactCollectionName"], given["artifactTypeName"],
            [alias["alias"] for alias in given.get("aliases") or []], json.loads(given.get("metadata") or "{}"),
        )  # fmt: skip
        sequence = {"id": _id("Sequence", number), "latestArtifact": None}
        return {
            "createArtifact": {"artifact": {"id": number, "state": "PENDING", "artifactSequence": sequence}}
        }

    def _create_manifest(self, asked: Json) -> Json:
        file = {
            "id": "manifest", "name": "manifest", "displayName": "manifest", "uploadHeaders": [],
            "uploadUrl": f"{self.url}/upload/manifest",
        }  # fmt: skip
        return {"createArtifactManifest": {"artifactManifest": {"id": "manifest", "file": file}}}

    def _create_artifact_files(self, asked: Json) -> Json:
        nodes = [
            {
                "id": _id("File", file["name"]), "name": file["name"], "displayName": file["name"],
                "uploadUrl": f"{self.url}/upload/artifact/{file['artifactID']}/{file['name']}", "uploadHeaders": [],
                "storagePath": file["name"], "uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]},
            }
            for file in asked["input"]["artifactFiles"]
        ]  # fmt: skip
        return {"createArtifactFiles": {"files": _page(nodes)}}

    def _commit_artifact(self, asked: Json) -> Json:
        self.artifacts[asked["artifactID"]].is_whole = True
        return {"commitArtifact": {"artifact": {"id": asked["artifactID"], "digest": "digest"}}}

    def _use_artifact(self, asked: Json) -> Json:
        return {"useArtifact": {"artifact": {"id": asked["input"]["artifactID"]}}}

    # --- reports

    def _save_report(self, asked: Json) -> Json:
        number = asked.get("id") or _id("View", len(self.reports) + 1)
        report = StoredReport(
            number, *self._place({**asked, "name": None}), asked["name"], asked["displayName"], asked["description"],
            json.loads(asked["spec"]), 1,
        )  # fmt: skip
        before = self.reports.get(number)
        report.saves += before.saves if before else 0
        self.reports[number] = report
        return {"upsertView": {"view": self._report_node(report), "inserted": before is None}}

    def _report_node(self, report: StoredReport) -> Json:
        return {
            "id": report.id, "type": "runs", "name": report.name, "displayName": report.title,
            "description": report.description, "spec": json.dumps(report.spec), "user": self._user(),
            "project": self._project_node(report.entity, report.project), "createdAt": THEN, "updatedAt": THEN,
        }  # fmt: skip

    def _list_reports(self, asked: Json) -> Json:
        place = self._place(asked)
        nodes = [
            self._report_node(report) for report in self.reports.values() if (report.entity, report.project) == place
        ]  # fmt: skip
        return {"project": {"allViews": _page(nodes)} if place in self.projects else None}

    def _read_report(self, asked: Json) -> Json:
        report = self.reports.get(asked["reportId"])
        return {"view": self._report_node(report) if report else None}

    # --- sweeps

    def _upsert_sweep(self, asked: Json) -> Json:
        if asked.get("id"):
            sweep = self.sweeps[asked["id"]]
            sweep.state = asked.get("state") or sweep.state
        else:
            config, number = yaml.safe_load(asked["config"]), f"sweep{len(self.sweeps)}"
            place = self._place({**asked, "name": None})
            sweep = StoredSweep(number, *place, config, _trials(number, config))
            self.sweeps[number] = sweep
            self.projects.add(place)
        node = {
            "name": sweep.id,
            "state": sweep.state,
            "project": self._project_node(sweep.entity, sweep.project),
        }
        return {"upsertSweep": {"sweep": node, "configValidationWarnings": []}}

    def _read_sweep(self, asked: Json) -> Json:
        sweep = self.sweeps.get(asked["sweep"])
        if sweep is None:
            return {"project": {"sweep": None}}
        node = {
            "id": sweep.id, "name": sweep.id, "method": sweep.config.get("method"), "state": sweep.state,
            "config": yaml.safe_dump(sweep.config), "runs": {"edges": []}, "createdAt": THEN, "heartbeatAt": THEN,
            "updatedAt": THEN, "description": "", "earlyStopJobRunning": False, "bestLoss": None, "controller": None,
            "scheduler": None,
        }  # fmt: skip
        return {"project": {"sweep": node}}

    def _heartbeat(self, asked: Json) -> Json:
        sweep, commands = self.sweeps[asked["id"]], []
        if not json.loads(asked.get("runState") or "{}"):  # one trial after another
            commands = [next(sweep.commands, {"type": "exit"})]
        return {"agentHeartbeat": {"agent": {"id": asked["id"]}, "commands": json.dumps(commands)}}


def _trials(sweep_id: str, config: Json) -> Iterator[Json]:
    """What an agent is told to run: all of a grid, else draws without end."""
    parameters = config["parameters"]
    draw = random.Random(0)
    if config["method"] == "grid":
        choices = [each.get("values", [each.get("value")]) for each in parameters.values()]
        trials: Iterator[Any] = itertools.product(*choices)
    else:
        trials = ([_drawn(draw, each) for each in parameters.values()] for _ in itertools.count())
    for number, values in enumerate(trials):
        arguments = {name: {"value": value} for name, value in zip(parameters, values, strict=True)}
        yield {
            "type": "run", "run_id": f"{sweep_id}-{number}", "program": config.get("program", ""), "args": arguments,
        }  # fmt: skip


def _drawn(draw: random.Random, parameter: Json) -> Any:
    if "min" not in parameter:
        return draw.choice(parameter.get("values", [parameter.get("value")]))
    low, high = parameter["min"], parameter["max"]
    if parameter.get("distribution") == "log_uniform_values":
        return math.exp(draw.uniform(math.log(low), math.log(high)))
    return draw.randint(low, high) if isinstance(low, int) else draw.uniform(low, high)


def _id(kind: str, name: Any) -> str:
    """An id as the service gives them."""
    return base64.b64encode(f"{kind}:{name}".encode()).decode()


def _page(nodes: list[Json], kind: str | None = None) -> Json:
    """All there is, as one page."""
    edges = [{"node": node, "cursor": str(number)} for number, node in enumerate(nodes)]
    ends = {"endCursor": None, "hasNextPage": False, **({"__typename": kind} if kind else {})}
    return {"edges": edges, "pageInfo": ends}


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words: object) -> None:
            """Nothing."""

        def reply(self) -> None:
            body = self.body()
            status, answer = server.answer(self.path.partition("?")[0], body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = reply

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                content = b"".join(iter(self.chunk, b""))
            else:
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            unpack = {"gzip": gzip.decompress, "deflate": zlib.decompress}
            return unpack.get(self.headers.get("Content-Encoding", ""), bytes)(content)

        def chunk(self) -> bytes:
            content = self.rfile.read(int(self.rfile.readline().split(b";")[0], 16))
            self.rfile.readline()
            return content

    return Handler
