"""A small Hub on loopback: enough of its API for the real huggingface_hub client.

Big files are served as the Hub does, through a redirect to another host name. Faults can be set:
connections that drop, bytes that are wrong, servers that ignore ranges.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

TOKEN = "hf_let_me_in"
BIG = (".safetensors", ".sqlite", ".npz", ".bin")
_KIND = r"(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
_RESOLVE = re.compile(r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/"
                      r"(?P<path>.+)")


def _prefix(kind: str) -> str:
    return "datasets/" if kind == "datasets" else ""


@dataclass
class Repo:
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        digest = hashlib.sha1(repr((sorted(files.items()), len(self.commits))).encode())
        self.commits[digest.hexdigest()] = dict(files)
        self.refs[branch] = digest.hexdigest()
        return self.refs[branch]

    def at(self, revision: str) -> str | None:
        revision = unquote(revision)
        return self.refs.get(revision, revision if revision in self.commits else None)


class FakeHub(ThreadingHTTPServer):
    """The state of the Hub, what it was asked, and what is wrong with it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.served = 0
        self.drop: dict[str, list[int]] = {}  # file -> after how many bytes each answer breaks off
        self.corrupt: set[str] = set()
        self.listed: dict[str, str] = {}  # file -> the name under which it is listed
        self.ranges = True

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, name: str, files: dict[str, bytes], kind: str = "models",
            private: bool = False) -> str:
        repo = self.repos.setdefault((kind, name), Repo(private))
        for data in files.values():
            self.blobs[hashlib.sha256(data).hexdigest()] = data
        return repo.commit(files)

    def files(self, name: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        repo = self.repos[kind, name]
        return repo.commits[str(repo.at(revision))]

    def gets(self, end: str) -> list[str | None]:
        """The Range of every GET for a file, answered by the storage or by the Hub itself."""
        return [ranged for method, path, ranged in self.asked
                if method == "GET" and path.endswith(end)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    # ------------------------------------------------------------ answers

    def _json(self, document: Any, status: int = 200, **headers: str) -> None:
        self._bytes(json.dumps(document).encode(), status, {"Content-Type": "application/json",
                                                            **headers})

    def _refuse(self, status: int, code: str, message: str = "") -> None:
        self._bytes(b"", status, {"X-Error-Code": code, "X-Error-Message": message or code})

    def _bytes(self, body: bytes, status: int, headers: dict[str, str], cut: int | None = None
               ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.server.served += len(body[:cut])  # before the client can look
        if cut is not None:
            self.wfile.write(body[:cut])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(body)

    def _content(self, data: bytes, name: str, headers: dict[str, str]) -> None:
        if name in self.server.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        told = self.headers.get("Range")
        status = 200
        if told and self.server.ranges:
            first, _, last = told.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last or len(data) - 1) + 1, len(data))
            headers = {**headers, "Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"}
            data, status = data[begin:end], 206
        plan = self.server.drop.get(name)
        cut = plan.pop(0) if plan and self.command == "GET" else None
        self._bytes(data, status, headers, cut)

    # ------------------------------------------------------------ reading

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append((self.command, unquote(path), self.headers.get("Range")))
        if path.startswith("/storage/"):
            _, _, oid, name = path.split("/", 3)
            return self._content(self.server.blobs[oid], unquote(name), {})
        if found := _RESOLVE.fullmatch(path):
            return self._resolve(found)
        if found := re.fullmatch(rf"/api/{_KIND}(/revision/(?P<rev>[^/]+))?", path):
            return self._info(found)
        if found := re.fullmatch(rf"/api/{_KIND}/tree/(?P<rev>[^/]+)", path):
            return self._tree(found)
        return self._refuse(404, "NotFound")

    def _repo(self, kind: str, name: str) -> Repo | None:
        """The repository; as on the Hub, a private one is not there for strangers."""
        repo = self.server.repos.get((kind, name))
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo is None or (repo.private and not allowed):
            self._refuse(404 if allowed else 401, "RepoNotFound", "Invalid username or password.")
            return None
        return repo

    def _at(self, found: re.Match[str], kind: str | None = None) -> tuple[str, Any] | None:
        repo = self._repo(kind or found["kind"], found["repo"])
        if repo is None:
            return None
        sha = repo.at(found["rev"] or "main")
        if sha is None:
            self._refuse(404, "RevisionNotFound")
            return None
        return sha, repo.commits[sha]

    def _info(self, found: re.Match[str]) -> None:
        if (at := self._at(found)) is not None:
            names = [{"rfilename": self.server.listed.get(n, n)} for n in at[1]]
            self._json({"id": found["repo"], "_id": "0", "sha": at[0], "siblings": names,
                        "private": False, "tags": [], "downloads": 0, "likes": 0})

    def _tree(self, found: re.Match[str], wanted: set[str] | None = None) -> None:
        if (at := self._at(found)) is None:
            return
        out = []
        for name, data in at[1].items():
            if wanted is not None and name not in wanted:
                continue
            blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            entry: dict[str, Any] = {"type": "file", "path": self.server.listed.get(name, name),
                                     "size": len(data), "oid": blob}
            if name.endswith(BIG):
                entry["lfs"] = {"size": len(data), "oid": hashlib.sha256(data).hexdigest(),
                                "pointerSize": 130}
            out.append(entry)
        self._json(out)

    def _resolve(self, found: re.Match[str]) -> None:
        at = self._at(found, "datasets" if found["kind"] else "models")
        if at is None:
            return
        sha, files = at
        name = unquote(found["path"])
        headers = {"X-Repo-Commit": sha}
        if name not in files:
            self._bytes(b"", 404, {**headers, "X-Error-Code": "EntryNotFound"})
            return
        data = files[name]
        oid = hashlib.sha256(data).hexdigest()
        if name.endswith(BIG):
            port = self.server.server_address[1]
            self._bytes(b"", 302, {
                **headers, "X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(data)),
                "Location": f"http://localhost:{port}/storage/{oid}/{found['path']}"})
        else:
            self._content(data, name, {**headers, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

    # ------------------------------------------------------------ writing

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        out = b""
        while size := int(self.rfile.readline(), 16):
            out += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return out

    def do_PUT(self) -> None:
        data = self._body()
        self.server.blobs[hashlib.sha256(data).hexdigest()] = data
        self._bytes(b"", 200, {})

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append(("POST", unquote(path), None))
        raw = self._body()
        if found := re.fullmatch(rf"/api/{_KIND}/paths-info/(?P<rev>[^/]+)", path):
            wanted = set(parse_qs(raw.decode()).get("paths", ()))
            return self._tree(found, wanted)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(401, "Unauthorized", "Invalid username or password.")
        if path == "/api/repos/create":
            return self._create(json.loads(raw))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if found := re.fullmatch(rf"/api/{_KIND}/preupload/(?P<rev>.+)", path):
            return self._preupload(json.loads(raw))
        if found := re.fullmatch(rf"/api/{_KIND}/branch/(?P<rev>.+)", path):
            return self._branch(found)
        if path.endswith("/info/lfs/objects/batch"):
            return self._batch(json.loads(raw))
        if found := re.fullmatch(rf"/api/{_KIND}/commit/(?P<rev>.+)", path):
            return self._commit(found, raw)
        return self._refuse(404, "NotFound")

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else \
            asked["name"]
        key = (f"{asked.get('type') or 'model'}s", name)
        page = f"{self.server.endpoint}/{_prefix(key[0])}{name}"
        if key in self.server.repos:
            return self._json({"error": "You already created this repo", "url": page}, 409)
        hidden = bool(asked.get("private") or asked.get("visibility") == "private")
        self.server.repos[key] = repo = Repo(hidden)
        repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        return self._json({"url": page})

    def _branch(self, found: re.Match[str]) -> None:
        repo, name = self.server.repos[found["kind"], found["repo"]], unquote(found["rev"])
        if name in repo.refs:
            return self._json({"error": "exists"}, 409)
        repo.refs[name] = repo.refs["main"]
        return self._json({})

    def _preupload(self, asked: dict[str, Any]) -> None:
        self._json({"files": [
            {"path": f["path"], "shouldIgnore": False,
             "uploadMode": "lfs" if f["path"].endswith(BIG) else "regular"}
            for f in asked["files"]]})

    def _batch(self, asked: dict[str, Any]) -> None:
        out = []
        for item in asked["objects"]:
            found = dict(item)
            if item["oid"] not in self.server.blobs:
                found["actions"] = {"upload": {"href": f"{self.server.endpoint}/put/{item['oid']}"}}
            out.append(found)
        self._json({"transfer": "basic", "objects": out})

    def _commit(self, found: re.Match[str], raw: bytes) -> None:
        repo = self.server.repos[found["kind"], found["repo"]]
        branch = unquote(found["rev"])
        files = dict(repo.commits[repo.refs[branch]])
        for line in raw.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        for data in files.values():
            self.server.blobs[hashlib.sha256(data).hexdigest()] = data
        sha = repo.commit(files, branch)
        page = f"{self.server.endpoint}/{_prefix(found['kind'])}{found['repo']}"
        self._json({"commitUrl": f"{page}/commit/{sha}", "commitOid": sha})


@contextmanager
def served(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[FakeHub]:
    """A Hub that the client in this process talks to, with a cache of its own and no token."""
    import huggingface_hub
    from huggingface_hub import constants

    hub = FakeHub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                        hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_URL_HOSTS", frozenset({"127.0.0.1"}), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 5)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its storage is not ours to fake
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    huggingface_hub.close_session()
    try:
        yield hub
    finally:
        huggingface_hub.close_session()
        hub.shutdown()
        hub.server_close()
        thread.join()
