"""A stand-in for the Hugging Face Hub on this machine, for tests with the hub's real library and command line.

It answers what huggingface_hub 2.4 asks to make a repository and to put files there, and keeps it in plain attributes:

    with HubServer() as server:
        subprocess.run(command, env={**os.environ, **server.environment})
        assert server.repositories["tester/demo"].files["README.md"]

It is our reading of the library, not the service. All files come inline with the commit, as small ones do there. What
it does not know it answers with an error, and keeps in `unknown`, so that a test can insist on an empty list.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import yaml

Json = dict[str, Any]
TOKEN = "hf_" + "A1b2" * 9  # that the stand-in takes
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass
class Repository:
    """A model's repository: its files as of the last commit, and what each commit said and changed."""

    is_private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[tuple[str, list[str]]] = field(default_factory=list)


@dataclass
class Request:
    """What a client sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class HubServer:
    """The service, at `url` between `start` and `stop`.

    user    whose token it takes
    status  what it answers to everything that is not 200, to try out how a client takes it
    """

    def __init__(self, user: str = "tester"):
        self.user, self.status = user, 200
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.unknown: list[str] = []
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> "HubServer":
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> "HubServer":
        """Answer from now on."""
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Answer no more."""
        self._http.shutdown()
        self._http.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """What tells a client to come here, logged in."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}

    def answer(self, request: Request) -> tuple[int, Json]:
        """(status, JSON) to one request."""
        with self._lock:
            self.requests.append(request)
            if self.status != 200:
                return self.status, {"error": "as told"}
            if request.headers.get("authorization") != f"Bearer {TOKEN}":
                return 401, {"error": "Invalid username or password."}
            try:
                return self._answer(request)
            except Exception as error:  # our reading is wrong: told, not asked for again and again
                self.unknown.append(f"{request.method} {request.path}: {error!r}")
                return 400, {"error": repr(error)}

    def _answer(self, request: Request) -> tuple[int, Json]:
        method, path = request.method, urlsplit(request.path).path
        if (method, path) == ("GET", "/api/whoami-v2"):
            return 200, {"type": "user", "name": self.user}
        if (method, path) == ("POST", "/api/repos/create"):
            return self._create(json.loads(request.body))
        if (method, path) == ("POST", "/api/validate-yaml"):
            errors = card_errors(json.loads(request.body)["content"])
            return (400 if errors else 200), {
                "errors": [{"message": error} for error in errors],
                "warnings": [],
            }
        found = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/(preupload|commit|revision)/main)?", path)
        if not found:
            self.unknown.append(f"{method} {path}")
            return 404, {"error": "unknown"}
        name, kind = found.groups()
        if (repository := self.repositories.get(name)) is None:
            return 404, {"error": "Repository not found"}
        if kind == "preupload":
            return 200, {"files": self._upload_modes(repository, json.loads(request.body)["files"])}
        if kind == "commit":
            return 200, self._commit(name, repository, request.body)
        siblings = [{"rfilename": path} for path in repository.files]
        return 200, {
            "id": name,
            "modelId": name,
            "sha": self._commit_id(repository),
            "private": repository.is_private,
            "siblings": siblings,
        }

    def _create(self, asked: Json) -> tuple[int, Json]:
        name = f"{asked.get('organization') or self.user}/{asked['name']}"
        status = 409 if name in self.repositories else 200
        if name.partition("/")[0] != self.user:
            return 403, {"error": f"You don't have the rights to create a model under the namespace {name}"}
        self.repositories.setdefault(name, Repository(asked.get("visibility") == "private"))
        return status, {"url": f"{self.url}/{name}", "error": "You already created this model repo"}

    def _upload_modes(self, repository: Repository, files: list[Json]) -> list[Json]:
        return [
            {
                "path": file["path"],
                "uploadMode": "regular",
                "shouldIgnore": False,
                "oid": _git_id(repository.files.get(file["path"])),
            }
            for file in files
        ]

    def _commit(self, name: str, repository: Repository, body: bytes) -> Json:
        (header, *operations) = [json.loads(line) for line in body.splitlines()]
        for each in operations:
            value = each["value"]
            if each["key"] == "deletedFile":
                del repository.files[value["path"]]
            else:
                assert (each["key"], value["encoding"]) == ("file", "base64")
                repository.files[value["path"]] = base64.b64decode(value["content"])
        changed = [each["value"]["path"] for each in operations]
        repository.commits.append((header["value"]["summary"], changed))
        commit = self._commit_id(repository)
        return {"success": True, "commitOid": commit, "commitUrl": f"{self.url}/{name}/commit/{commit}"}

    def _commit_id(self, repository: Repository) -> str:
        return f"{len(repository.commits):040x}"


def card_errors(card: str) -> list[str]:
    """What the hub would find wrong with the metadata of a model card, as its documentation tells the rules."""
    found = FRONT_MATTER.match(card)
    data = yaml.safe_load(found[1]) if found else None
    if not isinstance(data, dict):
        return ["metadata are no mapping"]
    texts = ("library_name", "pipeline_tag", "license", "base_model", "base_model_relation")
    errors = [f"{name} is no text" for name in texts if not isinstance(data.get(name, ""), str)]
    errors += [
        f"{name} is no list of texts" for name in ("tags", "datasets")
        if not all(isinstance(item, str) for item in data.get(name, []))
    ]  # fmt: skip
    named = [data.get("base_model", "x"), *data.get("datasets", [])]
    errors += [f"{name} is no name on the hub" for name in named if not HUB_ID.fullmatch(str(name))]
    for model in data.get("model-index", []):
        if not (isinstance(model["name"], str) and model["name"]):
            errors.append("model-index has no name")
        for result in model["results"]:
            needed = [result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"]]
            needed += [metric["type"] for metric in result["metrics"]]
            errors += [
                f"{value!r} in model-index is no text" for value in needed if not isinstance(value, str)
            ]
            errors += [
                f"{metric['type']} has no number" for metric in result["metrics"]
                if not isinstance(metric["value"], (int, float))
            ]  # fmt: skip
    return errors


def _git_id(content: bytes | None) -> str | None:
    """As git names a file, by which the library leaves out what is there already."""
    return content if content is None else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _handler(server: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, answer = server.answer(Request(self.command, self.path, headers, body))
            sent = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _respond

        def log_message(self, *arguments: Any) -> None:
            pass

    return Handler
