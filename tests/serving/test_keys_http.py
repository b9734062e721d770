"""API keys over HTTP: every route with every kind of key, before anything else is told."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.doors.access import Scope, generated
from tests.serving.bundles import digits_rows
from tests.serving.live import Live, receive, tensor

BODY = json.dumps({"inputs": [tensor("image", digits_rows(1), "UINT8")]}).encode()
MODEL = "/v2/models/digits-test"

Start = Callable[..., Live]

OPEN = [("GET", "/v2/health/live"), ("GET", "/v2/health/ready"), ("HEAD", "/v2/health/live")]
ROUTES = [
    ("GET", "/v2", Scope.INFER),
    ("GET", "/v2/", Scope.INFER),
    ("GET", "/v2/models", Scope.INFER),
    ("GET", MODEL, Scope.INFER),
    ("HEAD", MODEL, Scope.INFER),
    ("GET", f"{MODEL}/versions/1", Scope.INFER),
    ("GET", f"{MODEL}/ready", Scope.INFER),
    ("GET", f"{MODEL}/versions/1/ready", Scope.INFER),
    ("POST", f"{MODEL}/infer", Scope.INFER),
    ("POST", f"{MODEL}/versions/1/infer", Scope.INFER),
    ("POST", f"{MODEL}/predict", Scope.INFER),
    ("POST", f"{MODEL}/versions/1/predict", Scope.INFER),
    ("POST", "/v2/repository/index", "infer or admin"),
    ("GET", "/metrics", Scope.METRICS),
    ("POST", "/v2/repository/models/digits-test/load", Scope.ADMIN),
    ("POST", "/v2/repository/models/digits-test/unload", Scope.ADMIN),
    ("POST", "/v2/repository/models/digits-test/rollback", Scope.ADMIN),
    ("POST", "/v2/repository/mod%65ls/digits-test/load", Scope.ADMIN),
    ("DELETE", MODEL, Scope.INFER),
    ("GET", "/docs", Scope.INFER),
    ("GET", "/openapi.json", Scope.INFER),
    ("GET", "/", Scope.INFER),
    ("GET", "/nowhere", Scope.INFER),
    ("GET", "/v2/models/unknown", Scope.INFER),
    ("GET", "/v2/health", Scope.INFER),
    ("GET", "/v2/health/live/", Scope.INFER),
    ("GET", "/v2/health/live/x", Scope.INFER),
    ("GET", "/v2/models/..%2f..%2fhealth/live", Scope.INFER),
    ("GET", "//v2/health/live", Scope.INFER),
]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """(the file, each key by name: one for each scope, and one for all)."""
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    texts, lines = {}, []
    for name in [*Scope, "all"]:
        scopes = list(Scope) if name == "all" else [Scope(name)]
        texts[str(name)], key = generated(str(name), scopes)
        lines.append(key.line())
    path.write_text("\n".join(lines))
    path.chmod(0o600)
    return path, texts


@pytest.fixture(scope="module")
def guarded(
    bundle: Path,
    keys: tuple[Path, dict[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Live]:
    path, texts = keys
    live = Live(bundle, tmp_path_factory.mktemp("guarded"), "--keys", str(path))
    yield live
    assert live.stop() == 0
    for told in (live.told(), live.out.read_text()):
        assert "Traceback" not in told and "internal error" not in told
        for text in texts.values():
            for start in range(0, len(text) - 8, 4):  # no key, nor a part of one
                part = text[start : start + 8]
                assert part == "slipway_" or part not in told


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def body_of(path: str) -> bytes | None:
    return BODY if path.endswith(("infer", "predict")) else None


@pytest.mark.parametrize(("method", "path"), OPEN)
def test_health_is_open(guarded: Live, method: str, path: str) -> None:
    for headers in ({}, bearer("wrong"), {"X-API-Key": "wrong"}):
        assert guarded.ask(method, path, headers=headers)[0] == 200


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
def test_every_route_with_every_key(
    guarded: Live, keys: tuple[Path, dict[str, str]], method: str, path: str, scope: str
) -> None:
    texts = keys[1]
    for headers in ({}, bearer("wrong"), bearer(texts["all"] + "x"), {"X-API-Key": "wrong"}):
        status, told, body = guarded.ask(method, path, body_of(path), headers)
        assert status == 401
        assert told["www-authenticate"].startswith("Bearer")
        if method != "HEAD":
            assert list(json.loads(body)) == ["error"]
            assert b"digits" not in body
    for name, text in texts.items():
        for headers in (bearer(text), {"X-API-Key": text}):
            status, told, body = guarded.ask(method, path, body_of(path), headers)
            if name in (*scope.split(" or "), "all"):  # load and unload have a door of their own
                assert status != 401 and b"this needs" not in body
                assert status != 403 or scope == Scope.ADMIN
            else:
                assert status == 403
                assert method == "HEAD" or f"this needs {scope}" in json.loads(body)["error"]


def test_infer_with_a_key(guarded: Live, keys: tuple[Path, dict[str, str]]) -> None:
    status, _, answer = guarded.ask("POST", f"{MODEL}/infer", BODY, bearer(keys[1]["infer"]))
    assert status == 200 and json.loads(answer)["outputs"]


def test_a_refusal_keeps_the_connection(guarded: Live, keys: tuple[Path, dict[str, str]]) -> None:
    """Who forgot the key may come again on it; each request stands for itself."""
    good = f"GET /v2 HTTP/1.1\r\nHost: x\r\nX-API-Key: {keys[1]['infer']}\r\n\r\n".encode()
    bad = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
    with guarded.socket() as sock:
        sock.sendall((bad + good) * 5 + bad.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        statuses = re.findall(rb"HTTP/1.1 (\d+)", receive(sock))
    assert statuses == [b"401", b"200"] * 5 + [b"401"]


def test_two_keys_are_refused(guarded: Live, keys: tuple[Path, dict[str, str]]) -> None:
    """A gateway and the server might pick different ones."""
    key = keys[1]["infer"]
    for name in ("Authorization: Bearer", "X-API-Key:"):
        with guarded.socket() as sock:
            sock.sendall(
                f"GET /v2 HTTP/1.1\r\nHost: x\r\n{name} no\r\n{name} {key}\r\n\r\n".encode()
            )
            assert receive(sock).startswith(b"HTTP/1.1 400 ")


def test_other_schemes_are_no_key(guarded: Live, keys: tuple[Path, dict[str, str]]) -> None:
    text = keys[1]["infer"]
    basic = base64.b64encode(f"infer:{text}".encode()).decode()
    for value in (text, f"Basic {basic}", f"Token {text}", f"Bearer\t{text}", "Bearer "):
        assert guarded.ask("GET", "/v2", headers={"Authorization": value})[0] == 401
    both = {"Authorization": f"Basic {basic}", "X-API-Key": text}
    assert guarded.ask("GET", "/v2", headers=both)[0] == 200


@pytest.mark.parametrize("framing", ["Content-Length: 50000000", "Transfer-Encoding: chunked"])
def test_large_bodies_of_strangers_are_not_read(guarded: Live, framing: str) -> None:
    with guarded.socket() as sock:
        head = f"POST {MODEL}/infer HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n"
        sock.sendall(head.encode())
        assert receive(sock).startswith(b"HTTP/1.1 401 ")  # before a byte of it was sent


def test_strangers_are_not_asked_to_continue(
    guarded: Live, keys: tuple[Path, dict[str, str]]
) -> None:
    head = f"POST {MODEL}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n"
    head += "Expect: 100-continue\r\n"
    with guarded.socket() as sock:
        sock.sendall(f"{head}\r\n".encode())
        assert receive(sock).startswith(b"HTTP/1.1 401 ")
    with guarded.socket() as sock:
        sock.sendall(f"{head}X-API-Key: {keys[1]['infer']}\r\nConnection: close\r\n\r\n".encode())
        assert sock.recv(1000).startswith(b"HTTP/1.1 100 ")
        sock.sendall(BODY)
        assert receive(sock).startswith(b"HTTP/1.1 200 ")


def test_load_and_unload_need_an_admin(
    start: Start, bundle: Path, keys: tuple[Path, dict[str, str]]
) -> None:
    server = start(bundle, "--keys", str(keys[0]), "--control-port", "0")
    found = re.search(r"^control: .* on http://127\.0\.0\.1:(\d+)$", server.told(), re.M)
    assert found
    server.port = int(found[1])
    for change, final in (("unload", 200), ("load", 200)):
        path = f"/v2/repository/models/digits-test/{change}"
        assert server.ask("POST", path)[0] == 401
        assert server.ask("POST", path, headers=bearer(keys[1]["infer"]))[0] == 403
        assert server.ask("POST", path, headers=bearer(keys[1]["admin"]))[0] == final


def test_a_deleted_line_is_a_revoked_key(start: Start, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    (alice, first), (bob, second) = (generated(name, [Scope.INFER]) for name in ("alice", "bob"))
    path.write_text(f"{first.line()}\n{second.line()}\n")
    path.chmod(0o600)
    server = start(bundle, "--keys", str(path))
    assert server.ask("GET", "/v2", headers=bearer(alice))[0] == 200
    path.write_text(f"{second.line()}\n")
    time.sleep(1.1)
    assert server.ask("GET", "/v2", headers=bearer(alice))[0] == 401
    assert server.ask("GET", "/v2", headers=bearer(bob))[0] == 200
    path.write_text("nonsense\n")
    time.sleep(1.1)
    assert server.ask("GET", "/v2", headers=bearer(bob))[0] == 200
    assert "keys file refused, the keys of before stay" in server.told()
    assert "line 1" in server.told()


def test_unsound_keys_files_stop_the_start(start: Start, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(generated("alice", [Scope.INFER])[1].line() + "\nnonsense\n")
    path.chmod(0o644)
    server = start(bundle, "--keys", str(path), wait=False)
    assert server.process.wait(20) == 2 and "chmod 600" in server.told()
    path.chmod(0o600)
    server = start(bundle, "--keys", str(path), wait=False)
    assert server.process.wait(20) == 2 and f"{path}: line 2" in server.told()
    server = start(bundle, "--keys", str(tmp_path / "none"), wait=False)
    assert server.process.wait(20) == 2 and "No such file" in server.told()
    assert "Traceback" not in server.told()


def test_with_keys_a_public_address_is_fine(
    start: Start, bundle: Path, keys: tuple[Path, dict[str, str]]
) -> None:
    server = start(bundle, "--host", "0.0.0.0", "--keys", str(keys[0]), wait=False)
    for _ in range(500):
        if "ready: " in server.told():
            break
        time.sleep(0.02)
    assert "a public address without TLS" in server.told()
    assert "without keys" not in server.told()
