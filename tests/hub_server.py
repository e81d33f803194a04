"""A stand-in for the Hugging Face Hub on 127.0.0.1: what huggingface_hub asks for to download and to upload.

It serves and stores repositories in memory, and can break as a real one does: gated and private repositories, dropped
connections, wrong bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_the_owner"


@dataclass
class Repository:
    """Files by path; those above 1000 bytes are large ones (LFS), as on the hub."""

    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    licence: str | None = None
    messages: list[str] = field(default_factory=list)

    @property
    def commit(self) -> str:
        """A hash of all files, which changes with every one of them."""
        content = json.dumps({k: hashlib.sha1(v).hexdigest() for k, v in sorted(self.files.items())})
        return hashlib.sha1(content.encode()).hexdigest()


def is_large(content: bytes) -> bool:
    return len(content) > 1000


class HubServer(ThreadingHTTPServer):
    """Set `drop_after` to cut the next download after so many bytes, `corrupt` to serve that many wrong files, and
    `uploaded_meanwhile` to files that somebody else commits during the next upload."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.drop_after: int | None = None
        self.corrupt = 0
        self.uploaded_meanwhile: dict[str, bytes] = {}
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    @property
    def token(self) -> str:
        """The token of somebody who may see and write everything."""
        return TOKEN

    def add(self, repo_id: str, files: dict[str, bytes], **further: Any) -> Repository:
        """A new repository; `further` are fields of Repository."""
        self.repositories[repo_id] = Repository(dict(files), **further)
        return self.repositories[repo_id]

    def asked(self, part: str) -> list[str]:
        """Requests so far whose line contains `part`."""
        return [line for line in self.requests if part in line]


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Keep the tests' output clean."""

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def do_POST(self) -> None:
        body = self._body()
        path = self._path()
        if path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._lfs_batch(json.loads(body))
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            repo_id = path.removeprefix("/api/models/").partition("/preupload/")[0]
            self.server.repositories[repo_id].files.update(self.server.uploaded_meanwhile)
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["size"] > 1000 else "regular", "shouldIgnore": False}
                for f in files
            ]
            self._json({"files": modes})
        elif "/commit/" in path:
            self._commit(path.removeprefix("/api/models/").partition("/commit/")[0], body)
        else:
            self._refuse(404)

    def do_PUT(self) -> None:
        oid, body = self._path().rpartition("/")[2], self._body()
        if hashlib.sha256(body).hexdigest() != oid:
            self._refuse(422)
            return
        self.server.uploads[oid] = body
        self._json({})

    def _path(self) -> str:
        self.server.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
        return unquote(urlsplit(self.path).path)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _get(self) -> None:
        path = self._path()
        if path.startswith("/api/models/"):
            repo_id, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            repository = self._repository(repo_id, revision or "main")
            if repository is not None:
                self._json(self._info(repo_id, repository))
        elif "/resolve/" in path:
            repo_id, _, rest = path.lstrip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            repository = self._repository(repo_id, revision)
            if repository is not None:
                self._file(repository, name)
        else:
            self._refuse(404)

    def _repository(self, repo_id: str, revision: str) -> Repository | None:
        repository = self.server.repositories.get(repo_id)
        if repository is None or (repository.private and not self._has_token()):
            self._refuse(404 if self._has_token() else 401, "RepoNotFound")
        elif repository.gated and not self._has_token():
            self._refuse(403, "GatedRepo")
        elif revision not in ("main", repository.commit):
            self._refuse(404, "RevisionNotFound")
        else:
            return repository
        return None

    def _info(self, repo_id: str, repository: Repository) -> dict[str, Any]:
        blobs = "blobs" in parse_qs(urlsplit(self.path).query)
        siblings = []
        for name, content in repository.files.items():
            entry: dict[str, Any] = {"rfilename": name}
            if blobs:
                entry["size"] = len(content)
                if is_large(content):
                    digest = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        info: dict[str, Any] = {"id": repo_id, "sha": repository.commit, "private": repository.private}
        return {**info, "siblings": siblings, "cardData": {"license": repository.licence} if repository.licence else {}}

    def _file(self, repository: Repository, name: str) -> None:
        content = repository.files.get(name)
        if content is None:
            self._refuse(404, "EntryNotFound")
            return
        etag = (hashlib.sha256 if is_large(content) else hashlib.sha1)(content).hexdigest()
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-") or 0)
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.corrupt:
            self.server.corrupt -= 1
            content = bytes(len(content))
        part = content[start:]
        if self.server.drop_after is not None and is_large(content):
            part, self.server.drop_after = part[: self.server.drop_after], None
            self.close_connection = True
        self.wfile.write(part)

    def _create(self, request: dict[str, Any]) -> None:
        if not self._has_token() or request["organization"] == "somebody-else":
            self._refuse(403 if self._has_token() else 401)
            return
        private = request.get("visibility") == "private" or request.get("private") is True
        repo_id = f"{request['organization']}/{request['name']}"
        self.server.repositories[repo_id] = Repository({".gitattributes": b"*.pth lfs"}, private=private)
        self._json({"url": f"{self.server.endpoint}/{repo_id}", "name": repo_id})

    def _lfs_batch(self, request: dict[str, Any]) -> None:
        actions = [
            {**o, "actions": {"upload": {"href": f"{self.server.endpoint}/lfs/{o['oid']}"}}} for o in request["objects"]
        ]
        self._json({"transfer": "basic", "objects": actions})

    def _commit(self, repo_id: str, body: bytes) -> None:
        if not self._has_token():
            self._refuse(401)
            return
        repository = self.server.repositories[repo_id]
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repository.commit):
            self._refuse(412)
            return
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            else:
                repository.files[value["path"]] = self.server.uploads[value["oid"]]
        repository.messages.append(header["summary"])
        commit = repository.commit
        self._json({"commitUrl": f"{self.server.endpoint}/{repo_id}/commit/{commit}", "commitOid": commit})

    def _json(self, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status: int, code: str | None = None) -> None:
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
