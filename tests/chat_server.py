"""A real HTTP server on localhost that speaks OpenAI's chat protocol, for the tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass
class Reply:
    """What the server sends: a status, a JSON value or raw text, headers, and a wait before it in seconds."""

    status: int = 200
    payload: Any = None
    headers: dict[str, str] = field(default_factory=dict[str, str])
    wait: float = 0.0


@dataclass
class ChatServer:
    """The server's address, and every request it got: JSON bodies and headers."""

    url: str
    bodies: list[Body]
    headers: list[dict[str, str]]


def answer(text: str | None, *, top: dict[str, float] | None = None, finish: str = "stop") -> Reply:
    """Return a chat completion; `top` are the first token's alternatives with their log-probabilities."""
    choice: Body = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    if top is not None:
        tokens = [{"token": token, "logprob": value, "bytes": None} for token, value in top.items()]
        choice["logprobs"] = {"content": [{**tokens[0], "top_logprobs": tokens}]}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    usage["prompt_tokens_details"] = {"cached_tokens": 40}  # pyright: ignore[reportArgumentType]
    body = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return Reply(payload={**body, "usage": usage})


def error(status: int, message: str, **headers: str) -> Reply:
    """Return an error in OpenAI's form; underscores in the headers' names stand for hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"error": {"message": message, "code": message}}, named)


@contextmanager
def serve(reply: Callable[[Body, int], Reply]) -> Generator[ChatServer]:
    """Run a server whose answer to the n-th request (from 0) is `reply(body, n)`."""
    bodies: list[Body] = []
    headers: list[dict[str, str]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(bodies)
                bodies.append(body)
                headers.append(dict(self.headers.items()))
            sent = reply(body, number)
            if sent.wait:
                stop.wait(sent.wait)
            raw = sent.payload if isinstance(sent.payload, str) else json.dumps(sent.payload)
            data = raw.encode()
            try:
                self.send_response(sent.status)
                for name, value in {"Content-Type": "application/json", **sent.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # the caller has stopped waiting

        def log_message(self, format: str, *args: Any) -> None:
            pass

    stop = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield ChatServer(f"http://127.0.0.1:{server.server_address[1]}/v1", bodies, headers)
    finally:
        stop.set()
        server.shutdown()
        thread.join()
        server.server_close()
