"""A bad network in front of a real S3 server: a proxy that fails requests, seeded and counted."""

from __future__ import annotations

import http.client
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from mlip_job.config import StorageConfig
from tests.servers.s3 import S3Server

# S3's responses by code: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
ERRORS = {
    "AccessDenied": 403,
    "AuthorizationHeaderMalformed": 400,
    "BadDigest": 400,
    "ConditionalRequestConflict": 409,
    "ExpiredToken": 400,
    "InternalError": 500,
    "InvalidAccessKeyId": 403,
    "InvalidRequest": 400,
    "NoSuchBucket": 404,
    "PreconditionFailed": 412,
    "RequestTimeTooSkewed": 403,
    "SignatureDoesNotMatch": 403,
    "SlowDown": 503,
}
LATE = "late "
"""Prefix of an error's code: the request was executed all the same."""

# Transient faults of a network and a busy store, each with the requests that it may affect.
PASSING: dict[str, Callable[[_Request], bool]] = {
    "InternalError": lambda _: True,
    "SlowDown": lambda _: True,
    "BadDigest": lambda request: request.method == "PUT",
    "ConditionalRequestConflict": lambda request: request.is_conditional,
    "late InternalError": lambda _: True,
    "late PreconditionFailed": lambda request: request.is_conditional,
    "dropped": lambda _: True,
    "lost answer": lambda _: True,
    "hang": lambda _: True,
    "truncated": lambda request: request.method == "GET",
    "corrupted": lambda request: request.method == "GET" and "list-type" not in request.path,
}
_METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE")
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def is_conditional(self) -> bool:
        return self.method in ("PUT", "POST") and bool(
            {"if-match", "if-none-match"} & {name.lower() for name in self.headers}
        )


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes


@dataclass
class _Order:
    """A fault ordered by a test for certain requests."""

    fault: str
    path: re.Pattern[str]
    method: str
    left: float
    passing: int


@dataclass
class FaultProxy:
    """A running proxy.

    `injected` counts faults by kind, `requests` requests by method, `writes` executed ones by path.
    """

    endpoint_url: str
    rate: float = 0.0  # fraction of requests that fail in one of the ways of `PASSING`
    hang_s: float = 3.0  # before a hanging connection is dropped
    clock_offset: timedelta = timedelta(0)  # of the store's clock
    checksums: bool = True  # without them corruption shows only in hashes
    weak_etags: bool = False  # like a compressing proxy
    injected: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    writes: Counter[str] = field(default_factory=Counter)
    _upstream: str = ""
    _random: random.Random = field(default_factory=lambda: random.Random(0))
    _orders: list[_Order] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def order(
        self, fault: str, path: str = "", *, method: str = "", times: float = 1, after: int = 0
    ) -> None:
        with self._lock:
            self._orders.append(_Order(fault, re.compile(path), method, times, after))

    def cancel(self) -> None:
        with self._lock:
            self._orders.clear()
            self.rate = 0.0

    def fault_for(self, request: _Request) -> str | None:
        with self._lock:
            self.requests[request.method] += 1
            fault = self._ordered(request) or self._random_fault(request)
            if fault is not None:
                self.injected[fault] += 1
            return fault

    def _ordered(self, request: _Request) -> str | None:
        for order in self._orders:
            if order.method in ("", request.method) and order.path.search(request.path):
                if order.passing > 0:
                    order.passing -= 1
                elif order.left > 0:
                    order.left -= 1
                    return order.fault
        return None

    def _random_fault(self, request: _Request) -> str | None:
        if self._random.random() >= self.rate:
            return None
        return self._random.choice([name for name, fits in PASSING.items() if fits(request)])

    def execute(self, request: _Request) -> _Answer:
        connection = http.client.HTTPConnection(self._upstream, timeout=60)
        try:
            headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
            connection.request(request.method, request.path, request.body, headers)
            answer = connection.getresponse()
            if request.method == "PUT" and answer.status == 200:
                with self._lock:
                    self.writes[urlsplit(request.path).path] += 1
            return _Answer(answer.status, self._headers(answer), answer.read())
        finally:
            connection.close()

    def _headers(self, answer: http.client.HTTPResponse) -> list[tuple[str, str]]:
        headers = []
        for name, value in answer.getheaders():
            if name.lower() in ("date", "last-modified"):
                moved = parsedate_to_datetime(value) + self.clock_offset
                headers.append((name, format_datetime(moved, usegmt=True)))
            elif self.weak_etags and name.lower() == "etag":
                headers.append((name, f"W/{value}"))
            elif self.checksums or not name.lower().startswith("x-amz-checksum"):
                headers.append((name, value))
        return headers


class _Handler(BaseHTTPRequestHandler):
    """Handles one connection."""

    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = _Request(self.command, self.path, dict(self.headers.items()), body)
        fault = self.proxy.fault_for(request)
        if fault == "dropped":
            self._drop()
        elif fault == "hang":
            time.sleep(self.proxy.hang_s)
            self._drop()
        elif fault in ERRORS:
            self._answer(_error(fault))
        else:
            self._fail_late(fault, self.proxy.execute(request))

    def _fail_late(self, fault: str | None, answer: _Answer) -> None:
        if fault == "lost answer":
            self._drop()
        elif fault is not None and fault.startswith(LATE):
            self._answer(_error(fault.removeprefix(LATE)))
        elif fault == "truncated" and len(answer.body) > 1:
            self._answer(answer, sent=len(answer.body) // 2)
            self._drop()
        elif fault == "corrupted" and answer.body and answer.status == 200:
            middle = len(answer.body) // 2
            damaged = bytes([answer.body[middle] ^ 1])
            body = answer.body[:middle] + damaged + answer.body[middle + 1 :]
            self._answer(_Answer(answer.status, answer.headers, body))
        else:
            self._answer(answer)

    def _answer(self, answer: _Answer, sent: int | None = None) -> None:
        self.send_response_only(answer.status)
        length = str(len(answer.body))
        for name, value in answer.headers:
            if name.lower() == "content-length":
                length = value  # for HEAD, the object's
            elif name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[:sent])

    def _drop(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        reset = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        self.connection.close()

    def log_message(self, *_arguments: object) -> None:
        """Log nothing."""


def _error(code: str) -> _Answer:
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f"<Error><Code>{code}</Code><Message>injected</Message><RequestId>0</RequestId></Error>"
    )
    headers = [("Content-Type", "application/xml"), ("x-amz-request-id", "0")]
    return _Answer(ERRORS[code], headers, body.encode())


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_arguments: object) -> None:
        """Ignore clients that disconnect: these tests kill them."""


@contextmanager
def fault_proxy(
    upstream: str, *, seed: int = 0, host: str = "127.0.0.1", **options: object
) -> Iterator[FaultProxy]:
    """Run a proxy in front of an endpoint; `options` are attributes of `FaultProxy`."""
    server = _Server((host, 0), _Handler)
    proxy = FaultProxy(
        f"http://{host}:{server.server_port}",
        _upstream=urlsplit(upstream).netloc,
        _random=random.Random(seed),
        **options,  # type: ignore[arg-type]
    )
    methods = {f"do_{name}": _Handler.handle_request for name in _METHODS}
    server.RequestHandlerClass = type("Handler", (_Handler,), {"proxy": proxy, **methods})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def s3_proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(s3_server.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def s3_behind_proxy(s3_bucket: StorageConfig, s3_proxy: FaultProxy) -> StorageConfig:
    return s3_bucket.model_copy(update={"endpoint_url": s3_proxy.endpoint_url})
