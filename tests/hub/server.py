"""A small Hub on disk, over real HTTP, for tests: it can fail on request, and it keeps every byte that it was sent.

It answers what `huggingface_hub` asks when it creates, reads, pushes to and prunes repositories of models, datasets and
Spaces. Large files go up by the basic LFS transfer; Xet has to be off (`HF_HUB_DISABLE_XET=1`).

A repository is a folder: `repo.json` (commits, branches, tags), `git/` and `lfs/` (contents by their hash).
"""

import base64
import binascii
import contextlib
import datetime
import functools
import hashlib
import itertools
import json
import re
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

WRITER, READER = "hf_writer", "hf_reader"  # the tokens that the Hub knows
LARGE = (".safetensors", ".bin", ".pt", ".pkl", ".h5", ".msgpack", ".onnx", ".parquet", ".arrow", ".png", ".model")
LARGE_SIZE = 10 * 2**20
KINDS = {"": "models", "datasets/": "datasets", "spaces/": "spaces"}
PREFIXES = {kind: prefix for prefix, kind in KINDS.items()}
UNCOUNTED = "/api/agent-harnesses"  # the client looks this up for itself, once a day


class Request(NamedTuple):
    """What came in. The token is left out: it is meant to come, in a header."""

    method: str
    path: str
    body: bytes


class Answer(NamedTuple):
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = {}


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}
        self.answer = Answer(status, json.dumps({"error": message}).encode(), headers)


@dataclass
class Failure:
    """How requests are to fail, from the `at`-th on that fits, `times` times (None: for good)."""

    how: str | int
    at: int
    times: int | None
    fits: str
    seen: int = 0

    def takes(self, request: Request) -> bool:
        if not re.search(self.fits, f"{request.method} {request.path}"):
            return False
        self.seen += 1
        return self.seen >= self.at and (self.times is None or self.seen < self.at + self.times)


@dataclass
class LocalHub:
    """The repositories under a folder, and what happened to them.

    Attributes:
        root: the folder.
        requests: all that came in since the start, or since `forget_requests()`.
        tokens: what a token may do; requests without one may read what is public.
    """

    root: Path
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    tokens: dict[str, str] = field(default_factory=lambda: {WRITER: "write", READER: "read"})
    failures: list[Failure] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def fail(self, how: str | int, at: int = 1, times: int | None = None, fits: str = "") -> None:
        """Let requests fail, counted from now on.

        Args:
            how: `"drop"` closes the connection instead of doing anything, `"lose"` does what was asked and closes it
                instead of answering, `"half"` answers with half of the body; a number is the status of an error.
            at: the first request to fail, from 1.
            times: how many; None: all from then on.
            fits: only requests whose `METHOD /path` this regular expression finds are counted.
        """
        self.failures.append(Failure(how, at, times, fits))

    def recover(self) -> None:
        """No more failures."""
        self.failures.clear()

    def forget_requests(self) -> None:
        self.requests.clear()

    def sent(self) -> Iterator[tuple[str, bytes]]:
        """Every byte that came in, with where: addresses, bodies, and what is base64 in them once more in clear."""
        for request in self.requests:
            where = f"{request.method} {request.path}"
            yield where, unquote(request.path).encode()
            yield where, request.body
            for text in re.findall(rb'"(?:content|sample)": ?"([A-Za-z0-9+/=]*)"', request.body):
                with contextlib.suppress(binascii.Error):
                    yield where, base64.b64decode(text)

    def files(self, repo_id: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        """What a revision holds, as bytes by path."""
        repo = Repo.read(self.root, kind, repo_id)
        return {path: repo.content(entry) for path, entry in repo.commit(revision)["files"].items()}

    def branches(self, repo_id: str, kind: str = "models") -> dict[str, str]:
        """The commit at the head of each branch."""
        return dict(Repo.read(self.root, kind, repo_id).branches)

    def tags(self, repo_id: str, kind: str = "models") -> dict[str, str]:
        return dict(Repo.read(self.root, kind, repo_id).tags)

    def history(self, repo_id: str, revision: str = "main", kind: str = "models") -> list[dict[str, Any]]:
        """The commits of a revision, the newest first: id, title, message, files and so on."""
        return list(Repo.read(self.root, kind, repo_id).history(revision))

    def large_files(self, repo_id: str, kind: str = "models") -> set[str]:
        """The SHA-256 of every large file that is kept, whether a commit has it or not."""
        return {path.name for path in (Repo.read(self.root, kind, repo_id).folder / "lfs").iterdir()}

    def put(self, repo_id: str, files: dict[str, bytes], revision: str = "main", kind: str = "models") -> str:
        """A commit without a client, in a repository that is created if it does not exist; gives the commit's id."""
        with self.lock:
            if not (self.root / kind / repo_id).exists():
                Repo.create(self.root, kind, repo_id)
            repo = Repo.read(self.root, kind, repo_id)
            entries = {path: repo.keep(path, content) for path, content in files.items()}
            commit = repo.add_commit(revision, repo.commit(revision)["files"] | entries, "put")
            repo.write()
        return commit


@dataclass
class Repo:
    folder: Path
    name: str
    private: bool
    commits: dict[str, dict[str, Any]]
    branches: dict[str, str]
    tags: dict[str, str]

    @classmethod
    def create(cls, root: Path, kind: str, name: str, private: bool = False) -> None:
        folder = root / kind / name
        for part in ("git", "lfs"):
            (folder / part).mkdir(parents=True)
        repo = cls(folder, name, private, {}, {}, {})
        attributes = "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LARGE).encode()
        repo.add_commit("main", {".gitattributes": repo.keep(".gitattributes", attributes)}, "initial commit")
        repo.write()

    @classmethod
    def read(cls, root: Path, kind: str, name: str) -> "Repo":
        folder = root / kind / name
        if not (folder / "repo.json").exists():
            raise Refused(404, "Repository not found", "RepoNotFound")
        return cls(folder, name, **json.loads((folder / "repo.json").read_text()))

    def write(self) -> None:
        content = {name: getattr(self, name) for name in ("private", "commits", "branches", "tags")}
        temporary = self.folder / "repo.tmp"
        temporary.write_text(json.dumps(content))
        temporary.replace(self.folder / "repo.json")

    def keep(self, path: str, content: bytes) -> dict[str, Any]:
        """Store a file's content; its entry in a commit."""
        if is_large(path, len(content)):
            sha256 = hashlib.sha256(content).hexdigest()
            (self.folder / "lfs" / sha256).write_bytes(content)
            return large_entry(sha256, len(content))
        oid = git_hash(content)
        (self.folder / "git" / oid).write_bytes(content)
        return {"oid": oid, "size": len(content)}

    def content(self, entry: dict[str, Any]) -> bytes:
        path = self.folder / "lfs" / entry["sha256"] if "sha256" in entry else self.folder / "git" / entry["oid"]
        return path.read_bytes()

    def add_commit(
        self, branch: str, files: dict[str, Any], title: str, message: str = "", squash: bool = False
    ) -> str:
        parent = None if squash else self.branches.get(branch)
        content = {"parent": parent, "title": title, "message": message, "date": now(), "files": files}
        oid = hashlib.sha1(json.dumps([content, len(self.commits)]).encode()).hexdigest()
        self.commits[oid] = content
        self.branches[branch] = oid
        return oid

    def resolve(self, revision: str) -> str:
        """The id of the commit that a branch, a tag or a commit's id (or its beginning) names."""
        for names in (self.branches, self.tags):
            if revision in names:
                return names[revision]
        found = [oid for oid in self.commits if len(revision) >= 5 and oid.startswith(revision)]
        if not found:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found[0]

    def commit(self, revision: str) -> dict[str, Any]:
        return self.commits[self.resolve(revision)]

    def history(self, revision: str) -> Iterator[dict[str, Any]]:
        oid = self.resolve(revision)
        while oid:
            yield {"id": oid, **self.commits[oid]}
            oid = self.commits[oid]["parent"]


def is_large(path: str, size: int) -> bool:
    return size > 0 and (path.endswith(LARGE) or size > LARGE_SIZE)


def large_entry(sha256: str, size: int) -> dict[str, Any]:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    return {"oid": git_hash(pointer), "size": size, "sha256": sha256, "pointer": len(pointer)}


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


# ---------------------------------------------------------------------------------------------------------------------
# HTTP

ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Any]]] = []
PARTS = {
    "kind": "models|datasets|spaces",
    "prefix": "datasets/|spaces/|",
    "id": "[^/]+/[^/]+?",
    "rev": "[^/]+",
    "name": "[^/]+",
    "path": ".+",
}


def route(method: str, template: str) -> Callable[[Callable], Callable]:
    pattern = re.sub(r"\{(\w+)\}", lambda match: f"(?P<{match[1]}>{PARTS[match[1]]})", template)

    def register(function: Callable) -> Callable:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    hub: LocalHub | None = None  # the current one; between tests there is none, and connections are dropped

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # the client went away
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self) -> None:
        hub, request = self.server.hub, Request(self.command, self.path, self._body())
        if hub is None:
            return self._drop()
        if self.path.startswith(UNCOUNTED):
            return self._send(Answer(404))
        with hub.lock:
            hub.requests.append(request)
            how = next((failure.how for failure in list(hub.failures) if failure.takes(request)), None)
            if how == "drop":
                return self._drop()
            answer = failed(how) if isinstance(how, int) else self._handle(hub, request)
        if how == "lose":
            return self._drop()
        self._send(answer, half=how == "half")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def _handle(self, hub: LocalHub, request: Request) -> Answer:
        address = urlsplit(request.path)
        method = "GET" if request.method == "HEAD" else request.method
        self.query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        self.body = request.body
        try:
            for verb, pattern, function in ROUTES:
                if verb == method and (match := pattern.fullmatch(address.path)):
                    found = function(hub, self, **{name: unquote(value) for name, value in match.groupdict().items()})
                    return found if isinstance(found, Answer) else as_json(found)
            raise Refused(404, f"No such address: {request.method} {address.path}")
        except Refused as refused:
            return refused.answer

    def json(self) -> Any:
        return json.loads(self.body)

    def may(self, hub: LocalHub, what: str) -> None:
        """Whether the token of this request may `read` or `write`."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token:
            raise Refused(401, "Invalid username or password.")
        if token not in hub.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        if what == "write" and hub.tokens[token] != "write":
            raise Refused(403, "you don't have write access to this repository")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, answer: Answer, half: bool = False) -> None:
        body = b"" if self.command == "HEAD" else answer.body
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if half else body)
        if half:
            self._drop()

    def _drop(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args: Any) -> None:
        pass


def failed(status: int) -> Answer:
    """An error as the real Hub gives it."""
    messages = {401: "Invalid credentials in Authorization header", 403: "you don't have write access"}
    return Refused(status, messages.get(status, f"Failure {status}")).answer


def as_json(content: Any) -> Answer:
    return Answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})


# ---------------------------------------------------------------------------------------------------------------------
# What can be asked: accounts and repositories


@route("GET", "/api/whoami-v2")
def whoami(hub: LocalHub, handler: Handler) -> Any:
    handler.may(hub, "read")
    role = hub.tokens[handler.headers["Authorization"].removeprefix("Bearer ")]
    token = {"displayName": "tests", "role": role}
    return {"type": "user", "name": "me", "fullname": "Me", "orgs": [], "auth": {"accessToken": token}}


@route("POST", "/api/repos/create")
def create_repo(hub: LocalHub, handler: Handler) -> Any:
    handler.may(hub, "write")
    asked = handler.json()
    kind, name = f"{asked.get('type') or 'model'}s", f"{asked.get('organization') or 'me'}/{asked['name']}"
    answer = {"url": f"{hub.url}/{PREFIXES[kind]}{name}", "name": name}
    if (hub.root / kind / name).exists():
        return Answer(409, json.dumps({"error": "You already created this repo", **answer}).encode())
    Repo.create(hub.root, kind, name, asked.get("private") or asked.get("visibility") == "private")
    return answer


@route("DELETE", "/api/repos/delete")
def delete_repo(hub: LocalHub, handler: Handler) -> Any:
    handler.may(hub, "write")
    asked = handler.json()
    repo = Repo.read(hub.root, f"{asked.get('type') or 'model'}s", f"{asked['organization'] or 'me'}/{asked['name']}")
    shutil.rmtree(repo.folder)
    return {}


@route("POST", "/api/validate-yaml")
def validate_yaml(hub: LocalHub, handler: Handler) -> Any:
    match = re.match(r"---\r?\n(.*?)\r?\n---", handler.json()["content"], re.DOTALL)
    try:
        content = yaml.safe_load(match[1]) if match else {}
        errors = [] if isinstance(content, dict) else [{"message": "metadata is no mapping"}]
    except yaml.YAMLError as error:
        errors = [{"message": str(error)}]
    return Answer(400 if errors else 200, json.dumps({"errors": errors, "warnings": []}).encode())


def reading(function: Callable) -> Callable:
    """Give the repository that is asked for, if the token may read it."""

    @functools.wraps(function)
    def answer(hub: LocalHub, handler: Handler, id: str, kind: str = "", prefix: str = "", **parts: str) -> Any:
        repo = Repo.read(hub.root, kind or KINDS[prefix], id)
        if repo.private or handler.headers.get("Authorization"):
            handler.may(hub, "read")
        return function(hub, handler, repo, **parts)

    return answer


def writing(function: Callable) -> Callable:
    """Give the repository that is asked for, if the token may write to it, and save what was changed in it."""

    @functools.wraps(function)
    def answer(hub: LocalHub, handler: Handler, id: str, kind: str = "", prefix: str = "", **parts: str) -> Any:
        repo = Repo.read(hub.root, kind or KINDS[prefix], id)
        handler.may(hub, "write")
        answer = function(hub, handler, repo, **parts)
        repo.write()
        return answer

    return answer


@route("GET", "/api/{kind}/{id}")
@route("GET", "/api/{kind}/{id}/revision/{rev}")
@reading
def info(hub: LocalHub, handler: Handler, repo: Repo, rev: str = "main") -> Any:
    oid = repo.resolve(rev)
    files = repo.commits[oid]["files"]
    siblings = [{"rfilename": path} for path in sorted(files)]
    if "blobs" in handler.query:
        siblings = [{**item, **blob(files[item["rfilename"]], "blobId", "sha256")} for item in siblings]
    card = {}
    if "README.md" in files and (match := re.match(rb"---\n(.*?)\n---", repo.content(files["README.md"]), re.DOTALL)):
        card = yaml.safe_load(match[1])
    about = {"id": repo.name, "modelId": repo.name, "author": repo.name.split("/")[0], "private": repo.private}
    dates = {"lastModified": repo.commits[oid]["date"], "createdAt": repo.commits[oid]["date"]}
    return {**about, **dates, "sha": oid, "tags": card.get("tags") or [], "cardData": card, "siblings": siblings}


def blob(entry: dict[str, Any], oid: str, sha256: str) -> dict[str, Any]:
    item = {"size": entry["size"], oid: entry["oid"]}
    if "sha256" in entry:
        item["lfs"] = {sha256: entry["sha256"], "size": entry["size"], "pointerSize": entry["pointer"]}
    return item


@route("GET", "/api/{kind}/{id}/refs")
@reading
def refs(hub: LocalHub, handler: Handler, repo: Repo) -> Any:
    heads, tags = (
        [{"name": name, "ref": f"refs/{where}/{name}", "targetCommit": oid} for name, oid in names.items()]
        for where, names in (("heads", repo.branches), ("tags", repo.tags))
    )
    return {"branches": heads, "tags": tags, "converts": [], "pullRequests": []}


@route("GET", "/api/{kind}/{id}/commits/{rev}")
@reading
def commits(hub: LocalHub, handler: Handler, repo: Repo, rev: str) -> Any:
    shown = ("id", "title", "message", "date")
    return [{name: c[name] for name in shown} | {"authors": [{"user": "me"}]} for c in repo.history(rev)]


# ---------------------------------------------------------------------------------------------------------------------
# Reading files


@route("GET", "/{prefix}{id}/resolve/{rev}/{path}")
@reading
def resolve(hub: LocalHub, handler: Handler, repo: Repo, rev: str, path: str) -> Any:
    oid = repo.resolve(rev)
    entry = repo.commits[oid]["files"].get(path)
    if entry is None:
        raise Refused(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": oid})
    content, etag = repo.content(entry), f'"{entry.get("sha256") or entry["oid"]}"'
    headers = {"X-Repo-Commit": oid, "ETag": etag, "Accept-Ranges": "bytes"}
    if "sha256" in entry:
        headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(entry["size"])}
    if match := re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range") or ""):
        start, end = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
        if start >= len(content):
            raise Refused(416, "Range not satisfiable", **{"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        return Answer(206, content[start : end + 1], headers)
    return Answer(200, content, headers)


@route("GET", "/api/{kind}/{id}/tree/{rev}")
@route("GET", "/api/{kind}/{id}/tree/{rev}/{path}")
@reading
def tree(hub: LocalHub, handler: Handler, repo: Repo, rev: str, path: str = "") -> Any:
    commit, within = {"id": repo.resolve(rev), **repo.commit(rev)}, f"{path}/" if path else ""
    files = {name: entry for name, entry in commit["files"].items() if name.startswith(within)}
    if path and not files:
        raise Refused(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit["id"]})
    deep = handler.query.get("recursive", "").lower() in ("true", "1")
    items = [item(commit, name) for name in sorted(files) if deep or "/" not in name.removeprefix(within)]
    folders = sorted({folder for name in files for folder in parents(name) if folder.startswith(within)})
    items += [item(commit, folder) for folder in folders if deep or "/" not in folder.removeprefix(within)]
    return items


@route("POST", "/api/{kind}/{id}/paths-info/{rev}")
@reading
def paths_info(hub: LocalHub, handler: Handler, repo: Repo, rev: str) -> Any:
    if handler.headers.get("Content-Type", "").startswith("application/json"):
        paths = handler.json()["paths"]
    else:
        paths = parse_qs(handler.body.decode()).get("paths", [])
    commit = {"id": repo.resolve(rev), **repo.commit(rev)}
    known = set(commit["files"]).union(*map(parents, commit["files"]))
    return [item(commit, path) for path in paths if path in known]


def parents(path: str) -> list[str]:
    """The folders that a file is in."""
    return ["/".join(parts) for parts in itertools.accumulate(([p] for p in path.split("/")[:-1]), list.__add__)]


def item(commit: dict[str, Any], path: str) -> dict[str, Any]:
    last = {"lastCommit": {name: commit[name] for name in ("id", "title", "date")}}
    if path in commit["files"]:
        return {"type": "file", "path": path, **blob(commit["files"][path], "oid", "oid"), **last}
    return {"type": "directory", "path": path, "oid": git_hash(path.encode()), "size": 0, **last}


# ---------------------------------------------------------------------------------------------------------------------
# Writing files


@route("POST", "/api/{kind}/{id}/preupload/{rev}")
@writing
def preupload(hub: LocalHub, handler: Handler, repo: Repo, rev: str) -> Any:
    present, asked = repo.commit(rev)["files"], handler.json()
    patterns = asked.get("gitIgnore")
    if patterns is None and ".gitignore" in present:
        patterns = repo.content(present[".gitignore"]).decode()
    answers = []
    for file in asked["files"]:
        entry = present.get(file["path"], {})
        mode = "lfs" if is_large(file["path"], file["size"]) else "regular"
        answers.append(
            {"path": file["path"], "uploadMode": mode, "shouldIgnore": is_ignored(file["path"], patterns or "")}
            | {"oid": entry.get("sha256") or entry.get("oid")}
        )
    return {"files": answers}


def is_ignored(path: str, patterns: str) -> bool:
    """By the lines of a `.gitignore`, the last that fits: names, wildcards, folders and exceptions."""
    ignored = False
    for line in (line.strip() for line in patterns.splitlines()):
        pattern = line.removeprefix("!").strip("/")
        if not pattern or line.startswith("#"):
            continue
        names = [path, *parents(path)] if "/" in pattern else path.split("/")
        if any(fnmatchcase(name, pattern) for name in names):
            ignored = not line.startswith("!")
    return ignored


@route("POST", "/{prefix}{id}.git/info/lfs/objects/batch")
@writing
def large_batch(hub: LocalHub, handler: Handler, repo: Repo) -> Any:
    kind = repo.folder.relative_to(hub.root).parts[0]
    objects = []
    for file in handler.json()["objects"]:
        there = {name: file[name] for name in ("oid", "size")}
        if not (repo.folder / "lfs" / file["oid"]).exists():
            address = f"{hub.url}/lfs/{kind}/{repo.name}/{file['oid']}"
            there["actions"] = {"upload": {"href": address}, "verify": {"href": f"{address}/verify"}}
        objects.append(there)
    return {"transfer": "basic", "objects": objects}


@route("PUT", "/lfs/{kind}/{id}/{name}")
def large_put(hub: LocalHub, handler: Handler, kind: str, id: str, name: str) -> Any:
    """Without a token, as a store that is written by signed addresses."""
    if hashlib.sha256(handler.body).hexdigest() != name:
        raise Refused(400, "The content is not what was announced.")
    (Repo.read(hub.root, kind, id).folder / "lfs" / name).write_bytes(handler.body)
    return Answer()


@route("POST", "/lfs/{kind}/{id}/{name}/verify")
@writing
def large_verify(hub: LocalHub, handler: Handler, repo: Repo, name: str) -> Any:
    path = repo.folder / "lfs" / name
    if not path.exists() or path.stat().st_size != handler.json()["size"]:
        raise Refused(400, "The file is not there.")
    return {}


@route("POST", "/api/{kind}/{id}/commit/{rev}")
@writing
def commit(hub: LocalHub, handler: Handler, repo: Repo, rev: str) -> Any:
    if rev not in repo.branches:
        raise Refused(404, f"Invalid rev id: {rev}", "RevisionNotFound")
    lines = [json.loads(line) for line in handler.body.splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    parent = header.get("parentCommit")
    if parent and not repo.branches[rev].startswith(parent):
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    files = dict(repo.commit(rev)["files"])
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            content = base64.b64decode(value["content"])
            files[value["path"]] = repo.keep(value["path"], content)
        elif line["key"] == "lfsFile":
            path = repo.folder / "lfs" / value["oid"]
            if not path.exists():
                raise Refused(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
            files[value["path"]] = large_entry(value["oid"], path.stat().st_size)
        elif line["key"] == "deletedFile":
            if files.pop(value["path"], None) is None:
                raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        elif line["key"] == "deletedFolder":
            files = {
                name: entry for name, entry in files.items() if not name.startswith(f"{value['path'].rstrip('/')}/")
            }
    oid = repo.add_commit(rev, files, header["summary"], header.get("description") or "")
    kind = repo.folder.relative_to(hub.root).parts[0]
    return {"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{PREFIXES[kind]}{repo.name}/commit/{oid}"}


# ---------------------------------------------------------------------------------------------------------------------
# Branches, tags and history


@route("POST", "/api/{kind}/{id}/branch/{name}")
@writing
def create_branch(hub: LocalHub, handler: Handler, repo: Repo, name: str) -> Any:
    if name in repo.branches:
        raise Refused(409, f"Reference already exists: {name}")
    repo.branches[name] = repo.resolve(handler.json().get("startingPoint") or "main")
    return {}


@route("DELETE", "/api/{kind}/{id}/branch/{name}")
@writing
def delete_branch(hub: LocalHub, handler: Handler, repo: Repo, name: str) -> Any:
    if repo.branches.pop(name, None) is None:
        raise Refused(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return {}


@route("POST", "/api/{kind}/{id}/tag/{rev}")
@writing
def create_tag(hub: LocalHub, handler: Handler, repo: Repo, rev: str) -> Any:
    name = handler.json()["tag"]
    if name in repo.tags:
        raise Refused(409, f"Tag reference exists already: {name}")
    repo.tags[name] = repo.resolve(rev)
    return {}


@route("DELETE", "/api/{kind}/{id}/tag/{name}")
@writing
def delete_tag(hub: LocalHub, handler: Handler, repo: Repo, name: str) -> Any:
    if repo.tags.pop(name, None) is None:
        raise Refused(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return {}


@route("POST", "/api/{kind}/{id}/super-squash/{rev}")
@writing
def super_squash(hub: LocalHub, handler: Handler, repo: Repo, rev: str) -> Any:
    if rev not in repo.branches:
        raise Refused(404, f"Invalid rev id: {rev}", "RevisionNotFound")
    repo.add_commit(rev, repo.commit(rev)["files"], handler.json()["message"], squash=True)
    reachable = {c["id"] for ref in {**repo.branches, **repo.tags} for c in repo.history(ref)}
    repo.commits = {oid: commit for oid, commit in repo.commits.items() if oid in reachable}
    return {}


@route("GET", "/api/{kind}/{id}/lfs-files")
@reading
def large_files(hub: LocalHub, handler: Handler, repo: Repo) -> Any:
    names = {
        entry["sha256"]: path
        for commit in repo.commits.values()
        for path, entry in commit["files"].items()
        if "sha256" in entry
    }
    return [
        {"fileOid": file.name, "oid": git_hash(file.name.encode())}
        | ({"filename": names[file.name]} if file.name in names else {})
        | {"size": file.stat().st_size, "pushedAt": now()}
        for file in sorted((repo.folder / "lfs").iterdir())
    ]


@route("POST", "/api/{kind}/{id}/lfs-files/batch")
@writing
def delete_large_files(hub: LocalHub, handler: Handler, repo: Repo) -> Any:
    asked = handler.json()["deletions"]
    gone = {file.name for file in (repo.folder / "lfs").iterdir() if file.name in asked["sha"]}
    for name in gone:
        (repo.folder / "lfs" / name).unlink()
    if asked["rewriteHistory"]:
        for commit in repo.commits.values():
            commit["files"] = {p: e for p, e in commit["files"].items() if e.get("sha256") not in gone}
    return {}


# ---------------------------------------------------------------------------------------------------------------------
# Start


@dataclass
class Port:
    """A port that is taken now and answers once `serving` is used, so that its address can be set before any import."""

    server: Server = field(default_factory=lambda: Server(("127.0.0.1", 0), Handler, bind_and_activate=False))
    running: bool = False

    def __post_init__(self) -> None:
        self.server.server_bind()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @contextlib.contextmanager
    def serving(self, root: Path) -> Iterator[LocalHub]:
        """A Hub on this folder, for as long as the block lasts; then connections are dropped."""
        if not self.running:
            self.server.server_activate()
            threading.Thread(target=self.server.serve_forever, daemon=True, kwargs={"poll_interval": 0.05}).start()
            self.running = True
        self.server.hub = LocalHub(Path(root), self.url)
        try:
            yield self.server.hub
        finally:
            self.server.hub = None


if __name__ == "__main__":  # python -m tests.hub.server FOLDER
    port = Port()
    with port.serving(Path(sys.argv[1])):
        print(f"HF_ENDPOINT={port.url} HF_TOKEN={WRITER} HF_HUB_DISABLE_XET=1", flush=True)
        threading.Event().wait()
