"""A small Hub on this machine: what ``huggingface_hub`` asks for, and nothing more.

Repositories live in memory as commits (path -> bytes). Files called ``*.safetensors``
are large files: they are given by a redirect to another host name, as the real Hub does,
and are uploaded by the LFS protocol. Every request is noted.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_standInTokenOfNobody"
PAGE = 3  # entries of a tree in one answer, so that every listing has pages
FIRST = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}


@dataclass
class Repo:
    """Commits by their hash, and branches that point to them."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        seed = json.dumps([sorted(files), len(self.commits), branch]).encode()
        sha = hashlib.sha1(seed + b"".join(files.values())).hexdigest()
        self.commits[sha], self.branches[branch] = dict(files), sha
        return sha

    def find(self, revision: str) -> str | None:
        found = self.branches.get(revision, revision)
        return found if found in self.commits else None


@dataclass
class Request:
    method: str
    path: str
    host: str
    token: str | None
    range: str | None


class Hub:
    """The server, its repositories, and what was asked of it."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.cut: set[str] = set()  # large files whose next download breaks off
        self.broken = 0  # status of every answer, if not zero
        self.said = ""  # with this message
        self.before_commit = lambda: None
        hub = self

        class Handler(_Handler):
            def __init__(self, *arguments) -> None:
                self.hub = hub
                super().__init__(*arguments)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, name: str, files: dict[str, bytes], **changes) -> str:
        """A repository with one commit; returns its hash."""
        self.repos[name] = Repo(**changes)
        return self.repos[name].commit({**FIRST, **files})

    def asked(self, part: str = "") -> list[str]:
        """Methods and paths of the requests about models, in their order."""
        lines = [f"{r.method} {r.path}" for r in self.requests]
        return [s for s in lines if part in s and "agent-harnesses" not in s]


def blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def large(path: str) -> bool:
    return path.endswith(".safetensors")


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # heads and bodies are sent apart

    def log_message(self, *arguments) -> None:
        pass

    def answer(
        self, status: int, body: object = b"", head: bool = False, **headers
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        length = headers.pop("Content_Length", len(data))
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if not head:
            self.wfile.write(data)

    def refuse(self, status: int, code: str = "", message: str = "") -> None:
        headers = {"X_Error_Code": code} if code else {}
        self.answer(status, {"error": message or code}, self.head, **headers)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        bearer = self.headers.get("Authorization")
        self.token = bearer.removeprefix("Bearer ") if bearer else None
        self.head = self.command == "HEAD"
        path = unquote(url.path)
        host = self.headers.get("Host", "").partition(":")[0]
        wanted = self.headers.get("Range")
        self.hub.requests.append(Request(self.command, path, host, self.token, wanted))
        self.sent, self.query = self.body(), parse_qs(url.query)
        parts = url.path.strip("/").split("/")
        if self.hub.broken:
            self.refuse(self.hub.broken, message=self.hub.said)
        elif parts[:2] == ["api", "agent-harnesses"]:
            self.answer(200, {"standardEnvVars": [], "harnesses": {}})
        elif parts[0] == "large":
            self.large_file(parts[1])
        elif self.command in {"POST", "PUT"}:
            self.write(parts)
        elif parts[:2] == ["api", "models"]:
            self.about("/".join(parts[2:4]), parts[4:])
        elif "resolve" in parts[2:3]:
            self.resolve("/".join(parts[:2]), unquote(parts[3]), parts[4:])
        else:
            self.refuse(404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def repo(self, name: str) -> Repo | None:
        """The repository, if it is there and may be seen; otherwise the answer is given."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.token != TOKEN):
            self.refuse(404 if self.token else 401, "RepoNotFound", "not found")
            return None
        return repo

    def files(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = repo.find(unquote(revision))
        if sha is None:
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
            return None
        return sha, repo.commits[sha]

    def about(self, name: str, rest: list[str]) -> None:
        if not (repo := self.repo(name)):
            return
        kind, revision = (
            [*rest, "revision", "main"][:2] if rest else ("revision", "main")
        )
        if not (found := self.files(repo, revision)):
            return
        sha, files = found
        if kind == "tree":
            self.tree(files)
            return
        siblings = [{"rfilename": path} for path in files]
        self.answer(
            200,
            {
                "_id": "0",
                "id": name,
                "modelId": name,
                "sha": sha,
                "private": repo.private,
                "gated": "manual" if repo.gated else False,
                "tags": [],
                "siblings": siblings,
            },
        )

    def tree(self, files: dict[str, bytes]) -> None:
        folders = {path.rpartition("/")[0] for path in files} - {""}
        entries: list[dict[str, object]] = [
            {"type": "directory", "oid": "0" * 40, "size": 0, "path": folder}
            for folder in sorted(folders)
        ]
        for path, data in files.items():
            entry: dict[str, object] = {"type": "file", "path": path, "size": len(data)}
            entry["oid"] = blob(data)
            if large(path):
                entry["lfs"] = {
                    "oid": sha256(data),
                    "size": len(data),
                    "pointerSize": 130,
                }
            entries.append(entry)
        start = int(self.query.get("cursor", ["0"])[0])
        more = {}
        if start + PAGE < len(entries):
            here = self.hub.address + self.path.partition("?")[0]
            address = f"{here}?recursive=true&cursor={start + PAGE}"
            more["Link"] = f'<{address}>; rel="next"'
        self.answer(200, entries[start : start + PAGE], **more)

    def resolve(self, name: str, revision: str, rest: list[str]) -> None:
        if not (repo := self.repo(name)):
            return
        if repo.gated and self.token != TOKEN:
            self.refuse(403 if self.token else 401, "GatedRepo", "Access is restricted")
            return
        if not (found := self.files(repo, revision)):
            return
        sha, files = found
        path = unquote("/".join(rest))
        if path not in files:
            self.refuse(404, "EntryNotFound")
            return
        data = files[path]
        if large(path):
            oid = sha256(data)
            self.hub.objects[oid] = data
            self.answer(
                302,
                head=self.head,
                X_Repo_Commit=sha,
                X_Linked_Etag=f'"{oid}"',
                X_Linked_Size=len(data),
                Location=f"http://localhost:{self.hub.port}/large/{oid}",
            )
        else:
            self.answer(
                200, data, self.head, X_Repo_Commit=sha, ETag=f'"{blob(data)}"',
            )  # fmt: skip

    def large_file(self, oid: str) -> None:
        """Storage: signed addresses, ranges, and no business of tokens."""
        if self.command == "PUT":
            if sha256(self.sent) != oid:
                self.refuse(400, message="not what was announced")
                return
            self.hub.objects[oid] = self.sent
            self.answer(200)
            return
        data = self.hub.objects[oid]
        start, status, headers = 0, 200, {"ETag": f'"{oid}"'}
        if (wanted := self.headers.get("Range", "")).startswith("bytes="):
            start, status = int(wanted[6:].partition("-")[0]), 206
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if oid in self.hub.cut:
            self.hub.cut.discard(oid)
            self.answer(200, data[: len(data) // 2], Content_Length=len(data))
            self.wfile.flush()
            self.close_connection = True
        else:
            self.answer(status, data[start:], self.head, **headers)

    def write(self, parts: list[str]) -> None:
        if self.token != TOKEN:
            self.refuse(401, message="Invalid username or password.")
        elif parts == ["api", "repos", "create"]:
            self.create(json.loads(self.sent))
        elif parts == ["api", "validate-yaml"]:
            front = json.loads(self.sent)["content"].startswith("---\n")
            warning = {"message": "empty or missing yaml metadata in repo card"}
            self.answer(200, {"errors": [], "warnings": [] if front else [warning]})
        elif parts[2:] == ["info", "lfs", "objects", "batch"]:
            self.batch(json.loads(self.sent))
        elif parts[:2] == ["api", "models"] and (
            repo := self.repo("/".join(parts[2:4]))
        ):
            branch = unquote(parts[5])
            if parts[4] == "preupload":
                self.preupload(repo, branch, json.loads(self.sent))
            elif parts[4] == "branch":
                repo.branches[branch] = repo.branches["main"]
                self.answer(200)
            elif parts[4] == "commit":
                self.hub.before_commit()
                self.commit("/".join(parts[2:4]), repo, branch)

    def create(self, wish: dict) -> None:
        name = f"{wish['organization']}/{wish['name']}"
        known = name in self.hub.repos
        private = wish.get("visibility") == "private" or wish.get("private", False)
        if not known:
            self.hub.add(name, {}, private=private)
        self.answer(409 if known else 200, {"url": f"{self.hub.address}/{name}"})

    def preupload(self, repo: Repo, branch: str, wish: dict) -> None:
        there = repo.commits[repo.branches[branch]]
        ignored = there.get(".gitignore", b"").decode().split()
        answers = []
        for file in wish["files"]:
            path = file["path"]
            answer = {
                "path": path,
                "uploadMode": "lfs" if large(path) else "regular",
                "shouldIgnore": any(fnmatch(path, pattern) for pattern in ignored),
            }
            if path in there:
                data = there[path]
                answer["oid"] = sha256(data) if large(path) else blob(data)
            answers.append(answer)
        self.answer(200, {"files": answers})

    def batch(self, wish: dict) -> None:
        objects = []
        for item in wish["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.objects:
                href = f"http://localhost:{self.hub.port}/large/{item['oid']}"
                entry["actions"] = {"upload": {"href": href}}
            objects.append(entry)
        self.answer(200, {"transfer": "basic", "objects": objects})

    def commit(self, name: str, repo: Repo, branch: str) -> None:
        lines = [json.loads(line) for line in self.sent.splitlines()]
        head, files = lines[0]["value"], dict(repo.commits[repo.branches[branch]])
        if head.get("parentCommit") not in {None, repo.branches[branch]}:
            self.refuse(412, message="A commit has happened since. Please refresh.")
            return
        for line in lines[1:]:
            path, value = line["value"]["path"], line["value"]
            if line["key"] == "file":
                files[path] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[path] = self.hub.objects[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del files[path]
        sha = repo.commit(files, branch)
        repo.messages.append(head["summary"])
        address = f"{self.hub.address}/{name}/commit/{sha}"
        self.answer(200, {"success": True, "commitOid": sha, "commitUrl": address})
