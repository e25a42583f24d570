"""Servers that tests start: S3 by moto, Google's protocol, data sets as the hub serves them, a proxy that cuts."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import unquote, urlsplit

import pytest

from influence_cli.store import mirror, remote

KEY, SECRET = "AKIAINFLUENCETEST001", "a-secret-that-stands-in-no-file"
BUCKET = "data"


SERVING = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """The address of an S3 server in a process of its own, with one bucket, in memory."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask_cors") is None:
        pytest.skip("no S3 server: moto is not installed (extra test)")
    command, pipe = [sys.executable, "-W", "ignore", "-c", SERVING], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as running:
        try:
            assert running.stdout is not None
            endpoint = f"http://127.0.0.1:{int(running.stdout.readline())}"
            asked = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
            urllib.request.urlopen(asked, timeout=60).close()
            yield endpoint
        finally:
            running.kill()


def s3_environment(endpoint: str) -> dict[str, str]:
    """What says to a command where the server is, and who asks."""
    return {
        "AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET,
    }  # fmt: skip


@contextlib.contextmanager
def google_server() -> Iterator[str]:
    """The address of a server of Google's storage protocol in a process of its own, with one bucket, in memory."""
    if importlib.util.find_spec("gcp_storage_emulator") is None:
        pytest.skip("no server of Google's protocol: gcp-storage-emulator is not installed (extra test)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    how = ["--host", "127.0.0.1", "--port", str(port), "--in-memory", "--default-bucket", BUCKET]
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", *how]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            for _ in range(300):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            running.kill()


class Cutting:
    """A proxy before a server that cuts some connections after so many bytes of an answer."""

    def __init__(self, endpoint: str, cuts: int, after: int) -> None:
        parts = urlsplit(endpoint)
        assert parts.hostname is not None
        assert parts.port is not None
        self.server = parts.hostname, parts.port
        self.left, self.after, self.cut = cuts, after, 0
        self.lock = threading.Lock()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self.threads: list[threading.Thread] = []
        self._start(self._serve)

    def close(self) -> None:
        self.listening.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(10)
        self.listening.close()

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        self.threads.append(threading.Thread(target=work, args=arguments, daemon=True))
        self.threads[-1].start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.listening.accept()
            except OSError:
                return
            self._start(self._pass_on, client)

    def _pass_on(self, client: socket.socket) -> None:
        """What the one sends to the other, until one of them ends, or is cut off."""
        sent = 0
        with client, socket.create_connection(self.server) as server, contextlib.suppress(OSError):
            while True:
                ready, _, _ = select.select([client, server], [], [], 30)
                for source in ready:
                    data = source.recv(65536)
                    if source is server:
                        sent += len(data)
                        if sent > self.after and self._cuts():
                            return
                    if not data:
                        return
                    (client if source is server else server).sendall(data)
                if not ready:
                    return

    def _cuts(self) -> bool:
        with self.lock:
            if self.left <= 0:
                return False
            self.left, self.cut = self.left - 1, self.cut + 1
            return True


class _Hub(BaseHTTPRequestHandler):
    """The part of the hub's protocol that reading a data set's files takes."""

    files: dict[str, bytes]
    name: str

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        wanted = [unquote(part.partition("=")[2]) for part in asked.split("&") if part.startswith("paths=")]
        wanted = wanted or json.loads(asked or "{}").get("paths", []) if asked.startswith("{") else wanted
        self._json([self._entry(name) for name in self.files if name in wanted])

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith(f"/api/datasets/{self.name}/tree/"):
            return self._json([self._entry(name) for name in self.files])
        if path.startswith(f"/api/datasets/{self.name}"):
            return self._json({"id": self.name, "sha": "0" * 40, "private": False, "tags": [], "siblings": []})
        data = self.files.get(path.removeprefix(f"/datasets/{self.name}/resolve/").partition("/")[2])
        if data is None:
            self.send_error(404)
            return None
        start, end = 0, len(data) - 1
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or end), end)
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(end - start + 1))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
        self.end_headers()
        if body:
            self.wfile.write(data[start : end + 1])
        return None

    def _entry(self, name: str) -> dict[str, object]:
        data = self.files[name]
        return {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": name}

    def _json(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def hub_server(name: str, files: dict[str, bytes]) -> Iterator[str]:
    """The address of a server that has one data set, as HF_ENDPOINT takes it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"files": files, "name": name}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def everything_below(*folders: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file of some folders, with what is in it."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield path, path.read_bytes()


@contextlib.contextmanager
def cut_off(endpoint: str, cuts: int, after: int) -> Iterator[str]:
    """The endpoint of a proxy that cuts so many connections; all of them have been cut when it is left."""
    proxy = Cutting(endpoint, cuts, after)
    try:
        yield proxy.endpoint
        assert proxy.cut == cuts
    finally:
        proxy.close()
        remote._file_system.cache_clear()


def asking_afresh(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ask a server by the environment, with nothing remembered of another."""
    monkeypatch.setattr(remote, "_copies", {})
    monkeypatch.setattr(mirror, "_mirrors", {})
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    remote._file_system.cache_clear()
    return mock.patch.dict(os.environ, s3_environment(endpoint))
