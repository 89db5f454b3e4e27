"""A hub and a package index in one small web server, and the files that they serve."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

IR_FILES = {
    "openvino_model.xml": b"<net/>",
    "openvino_model.bin": b"weights" * 40_000,
    "tokenizer.json": b"{}",
    "config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
}
EXTRA_FILES = {
    "README.md": b"# read me",
    "pytorch_model.bin": b"checkpoint",
    "model.safetensors": b"checkpoint",
    "openvino/nested.json": b"{}",
    "run.py": b"raise SystemExit('executed')",
}


@dataclass
class Web:
    """What the server knows, and what it was asked."""

    url: str = ""
    repos: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    wheels: dict[str, bytes] = field(default_factory=dict)  # file name -> bytes
    pages: dict[str, bytes] = field(default_factory=dict)  # path -> what is there instead
    lfs: dict[str, str] = field(default_factory=dict)  # file name -> sha256 to announce
    gated: set[str] = field(default_factory=set)
    requests: Counter[str] = field(default_factory=Counter)
    drop_once: set[str] = field(default_factory=set)  # paths cut off half way, the first time
    stall: set[str] = field(default_factory=set)  # paths that stop half way
    stalled: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)

    def add_repo(self, repo: str, files: dict[str, bytes], revision: str = "main") -> None:
        self.repos[repo, revision] = files
        self.repos[repo, commit_of(files)] = files


def commit_of(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class WebHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.web.requests[f"{self.command} {path}"] += 1
        if path in self.web.pages:
            self._send(self.web.pages[path], {"Content-Type": "text/html"})
        elif path.startswith("/simple/"):
            self._index(path.removeprefix("/simple/").strip("/"))
        elif path.startswith("/wheels/"):
            self._send(self.web.wheels[path.removeprefix("/wheels/")], {})
        elif path.startswith("/api/models/"):
            repo, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            self._repo(repo, revision or "main")
        else:
            repo, _, rest = path.strip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            self._file(repo, revision, name)

    def _index(self, project: str) -> None:
        prefix = project.replace("-", "_")
        names = [name for name in self.web.wheels if name.startswith(prefix)]
        page = "".join(f'<a href="/wheels/{name}">{name}</a>' for name in names)
        self._send(page.encode(), {"Content-Type": "text/html"})

    def _files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        if repo in self.web.gated:
            self._error(401, "GatedRepo")
        elif all(known != repo for known, _ in self.web.repos):
            self._error(404, "RepoNotFound")
        elif (repo, revision) not in self.web.repos:
            self._error(404, "RevisionNotFound")
        else:
            return self.web.repos[repo, revision]
        return None

    def _repo(self, repo: str, revision: str) -> None:
        if (files := self._files(repo, revision)) is None:
            return
        siblings = []
        for name, content in files.items():
            sibling: dict[str, object] = {"rfilename": name, "size": len(content)}
            if name in self.web.lfs:
                sibling["lfs"] = {
                    "sha256": self.web.lfs[name],
                    "size": len(content),
                    "pointerSize": 134,
                }
            siblings.append(sibling)
        answer = {"id": repo, "modelId": repo, "sha": commit_of(files), "siblings": siblings}
        self._send(json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, repo: str, revision: str, name: str) -> None:
        if (files := self._files(repo, revision)) is None:
            return
        if name not in files:
            self._error(404, "EntryNotFound")
            return
        etag = hashlib.sha256(files[name]).hexdigest()
        self._send(files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": commit_of(files)})

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes, headers: dict[str, str]) -> None:
        path = unquote(urlsplit(self.path).path)
        start = 0
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
        body = content[start:]
        self.send_response(206 if asked else 200)
        if asked:
            last = len(content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        half = len(body) // 2
        if path in self.web.drop_once:
            self.web.drop_once.remove(path)
            self.wfile.write(body[:half])
            self.close_connection = True
        elif path in self.web.stall:
            self.wfile.write(body[:half])
            self.wfile.flush()
            self.web.stalled.set()
            self.web.release.wait(30)
            self.close_connection = True
        else:
            self.wfile.write(body)


def make_wheel(files: dict[str, bytes], project: str = "tiny_model", version: str = "1.0") -> bytes:
    buffer = io.BytesIO()
    info = f"{project}-{version}.dist-info"
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        metadata = f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n"
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()


def files_under(folder: Path) -> list[str]:
    """Every file in a cache folder but the (empty) locks."""
    found = (path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    names = (path.relative_to(folder).as_posix() for path in found)
    return sorted(name for name in names if ".lock" not in name)
