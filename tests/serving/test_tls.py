"""TLS and client certificates: what is served, what is refused, and new files while it runs."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import textwrap
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image

from pipeline.config import ConfigError
from serving.config import TlsSettings
from serving.doors.access import Scope, generated
from serving.doors.tls import Certificates, expiry
from tests.serving.bundles import digits_rows
from tests.serving.certificates import Authority, Pair, encrypted
from tests.serving.live import ROOT, Live, receive, tensor

BODY = json.dumps({"inputs": [tensor("image", digits_rows(1), "UINT8")]}).encode()
LARGE = json.dumps({"inputs": [tensor("image", digits_rows(1000), "UINT8")]}).encode()
INFER = "/v2/models/digits-test/infer"

Start = Callable[..., Live]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.server("server")


@pytest.fixture(scope="module")
def guarded(
    bundle: Path, authority: Authority, pair: Pair, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    """A server with TLS that asks for no client certificate."""
    live = Live(bundle, tmp_path_factory.mktemp("guarded"), *options(pair))
    yield live
    assert live.process.poll() is None, live.told()
    assert live.stop() == 0
    for sign in ("internal error", "Traceback", "Exception", "eof_received"):
        assert sign not in live.told()


@pytest.fixture(scope="module")
def mutual(
    bundle: Path, authority: Authority, pair: Pair, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    """A server that knows its clients by their certificates."""
    live = Live(bundle, tmp_path_factory.mktemp("mutual"), *options(pair, authority.certificate))
    yield live
    assert live.stop() == 0
    assert "Traceback" not in live.told()


def options(pair: Pair, client_ca: Path | None = None) -> list[str]:
    given = ["--tls-cert", str(pair.certificate), "--tls-key", str(pair.key)]
    return given + (["--tls-client-ca", str(client_ca)] if client_ca else [])


def trusting(authority: Authority, client: Pair | None = None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=authority.certificate)
    if client:
        made.load_cert_chain(client.certificate, client.key)
    return made


def connected(server: Live, client: ssl.SSLContext) -> http.client.HTTPSConnection:
    return http.client.HTTPSConnection("127.0.0.1", server.port, timeout=20, context=client)


def ask(server: Live, client: ssl.SSLContext, body: bytes = BODY) -> int:
    connection = connected(server, client)
    try:
        connection.request("POST", INFER, body)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def serial(server: Live, authority: Authority) -> str:
    """The certificate that a new connection is shown."""
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as plain,
        trusting(authority).wrap_socket(plain, server_hostname="127.0.0.1") as sock,
    ):
        told = sock.getpeercert()
        assert told
        return str(told["serialNumber"])


def await_told(server: Live, text: str) -> None:
    for _ in range(250):
        if text in server.told():
            return
        time.sleep(0.02)
    raise AssertionError(f"{text!r} not in {server.told()!r}")


def test_answers_over_tls(guarded: Live, authority: Authority) -> None:
    assert f"on https://127.0.0.1:{guarded.port}" in guarded.told()
    connection = connected(guarded, trusting(authority))
    for body in (BODY, LARGE, BODY):  # one connection, kept
        connection.request("POST", INFER, body)
        answer = connection.getresponse()
        assert answer.status == 200
        json.loads(answer.read())
    assert connection.sock is not None
    assert connection.sock.version() == "TLSv1.3"
    connection.close()


def test_pipelined_requests_and_a_farewell_in_the_middle(
    guarded: Live, authority: Authority
) -> None:
    request = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
    plain = socket.create_connection(("127.0.0.1", guarded.port), timeout=20)
    with trusting(authority).wrap_socket(plain, server_hostname="127.0.0.1") as sock:
        last = b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        sock.sendall((request + BODY) * 3 + last)
        assert receive(sock).count(b"HTTP/1.1 200 OK") == 4
    plain = socket.create_connection(("127.0.0.1", guarded.port), timeout=20)
    with trusting(authority).wrap_socket(plain, server_hostname="127.0.0.1") as sock:
        sock.sendall((request + BODY) * 10)
        with suppress(ssl.SSLError):  # the answers that were on their way already
            sock.unwrap()
    assert ask(guarded, trusting(authority)) == 200


@pytest.mark.parametrize(
    ("maximum", "answers"), [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)]
)
def test_old_tls_is_refused(
    guarded: Live, authority: Authority, maximum: ssl.TLSVersion, answers: bool
) -> None:
    client = trusting(authority)
    client.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore"):  # so old that naming them is deprecated
        client.minimum_version = ssl.TLSVersion.TLSv1
        client.maximum_version = maximum
    if answers:
        assert ask(guarded, client) == 200
    else:
        with pytest.raises(OSError):
            ask(guarded, client)


def test_weak_ciphers_are_refused(guarded: Live, authority: Authority) -> None:
    client = trusting(authority)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers("AES128-SHA:@SECLEVEL=0")  # no forward secrecy
    with pytest.raises(OSError):
        ask(guarded, client)


def test_a_client_that_trusts_another_authority_leaves(guarded: Live, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(guarded, trusting(Authority(tmp_path)))


def test_plain_http_on_the_tls_port_gets_nothing(guarded: Live, authority: Authority) -> None:
    time.sleep(1.1)  # what the tests before this one caused is told by now
    with guarded.socket() as sock:
        sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP" not in receive(sock)
    await_told(guarded, '"event":"TLS handshake refused","reason":"HTTP_REQUEST"')
    assert ask(guarded, trusting(authority)) == 200


def test_noise_on_the_tls_port_is_told_once_a_second(guarded: Live, authority: Authority) -> None:
    before = guarded.told().count("TLS handshake refused")
    start = time.monotonic()
    for _ in range(200):
        with guarded.socket() as sock:
            sock.sendall(b"\xff" * 200)
            receive(sock)
    lines = guarded.told().count("TLS handshake refused") - before
    assert lines <= time.monotonic() - start + 2
    assert ask(guarded, trusting(authority)) == 200


def test_stalled_handshakes_harm_nobody_and_end(
    start: Start, bundle: Path, tmp_path: Path, authority: Authority, pair: Pair
) -> None:
    config = tmp_path / "serve.toml"
    config.write_text("[tls]\nhandshake_seconds = 1.5\n")
    server = start(bundle, *options(pair), "--config", str(config))
    hello = _client_hello(authority)
    stalled = []
    for number in range(300):
        sock = server.socket()
        sock.sendall((b"", hello[:7], hello)[number % 3])
        stalled.append(sock)
    begun = time.monotonic()
    for _ in range(20):
        assert ask(server, trusting(authority)) == 200
    assert time.monotonic() - begun < 5
    for sock in stalled:
        sock.settimeout(10)
        receive(sock)  # until the server closes
        sock.close()
    assert time.monotonic() - begun < 8
    assert ask(server, trusting(authority)) == 200
    assert "Traceback" not in server.told() and "asyncio" not in server.told()


def test_handshakes_under_way_are_counted(
    start: Start, bundle: Path, tmp_path: Path, authority: Authority, pair: Pair
) -> None:
    """Those that stall keep others out, as nobody could tell them apart, until their time is up."""
    config = tmp_path / "serve.toml"
    config.write_text("[tls]\nhandshake_seconds = 1\nhandshakes = 8\n")
    server = start(bundle, *options(pair), "--config", str(config))
    for _ in range(20):  # those that are done count no more
        assert ask(server, trusting(authority)) == 200
    stalled = [server.socket() for _ in range(8)]
    begun = time.monotonic()
    one_more = server.socket()
    assert receive(one_more) == b""
    assert time.monotonic() - begun < 0.9, "cut off at once"
    for sock in (*stalled, one_more):
        receive(sock)
        sock.close()
    assert ask(server, trusting(authority)) == 200
    assert '"reason":"TOO_MANY_UNDER_WAY","count":1' in server.told()
    assert "Traceback" not in server.told() and "asyncio" not in server.told()


def test_idle_clients_do_not_hold_up_the_end(
    start: Start, bundle: Path, authority: Authority, pair: Pair
) -> None:
    server = start(bundle, *options(pair))
    clients = [connected(server, trusting(authority)) for _ in range(5)]
    for client in clients:
        client.request("GET", "/v2/health/ready")
        client.getresponse().read()
    begun = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - begun < 4
    assert "cut off" not in server.told()


def test_clients_are_known_by_their_certificate(mutual: Live, authority: Authority) -> None:
    assert ask(mutual, trusting(authority, authority.client("known"))) == 200


def test_the_probe_of_the_page_on_deploying_asks_from_within(
    mutual: Live, authority: Authority
) -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    (block,) = re.findall(r"^ +- \|\n(.*?)^  periodSeconds", page, re.S | re.M)
    program = textwrap.dedent(block).replace(":8000", f":{mutual.port}")
    client = authority.client("probe")
    for shown, place in (
        ("/etc/slipway/tls/ca.crt", authority.certificate),
        ("/etc/slipway/probe/tls.crt", client.certificate),
        ("/etc/slipway/probe/tls.key", client.key),
    ):
        program = program.replace(shown, str(place))
    for text, code in ((program, 0), (program.replace("/ready", "/none"), 1)):
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, timeout=20)
        assert done.returncode == code, done.stderr


def test_clients_without_a_certificate_are_refused(mutual: Live, authority: Authority) -> None:
    for maximum in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        client = trusting(authority)
        client.maximum_version = maximum
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(mutual, client)
    await_told(mutual, "PEER_DID_NOT_RETURN_A_CERTIFICATE")
    await_told(mutual, "the client sent no certificate; tls.client_ca asks for one")


@pytest.mark.parametrize("kind", ["another authority", "expired", "a server's"])
def test_other_certificates_are_refused(
    mutual: Live, authority: Authority, tmp_path: Path, kind: str
) -> None:
    shown = {
        "another authority": lambda: Authority(tmp_path, "Test CA").client("stranger"),
        "expired": lambda: authority.client("late", timedelta(days=-1)),
        "a server's": lambda: authority.server("other-server"),
    }[kind]()
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(mutual, trusting(authority, shown))
    assert ask(mutual, trusting(authority, authority.client("known"))) == 200


def test_a_new_certificate_is_shown_to_new_connections(
    start: Start, bundle: Path, tmp_path: Path, authority: Authority
) -> None:
    old, new = authority.server("old"), authority.server("new")
    used = Pair(tmp_path / "used.pem", tmp_path / "used.key")
    shutil.copy(old.certificate, used.certificate)
    shutil.copy(old.key, used.key)
    server = start(bundle, *options(used))
    kept = connected(server, trusting(authority))
    kept.request("POST", INFER, BODY)
    assert kept.getresponse().read()
    before = serial(server, authority)

    shutil.copy(new.certificate, used.certificate)  # not a pair until the key is there too
    time.sleep(1.1)
    assert serial(server, authority) == before
    await_told(server, "TLS files refused, those of before stay")
    assert "are not a pair" in server.told()
    shutil.copy(new.key, used.key)
    time.sleep(1.1)
    assert serial(server, authority) != before
    await_told(server, "TLS files read anew")

    kept.request("POST", INFER, BODY)  # the connection of before was not dropped
    assert kept.getresponse().status == 200
    assert ask(server, trusting(authority)) == 200


def test_a_client_authority_can_be_taken_back(
    start: Start, bundle: Path, tmp_path: Path, authority: Authority, pair: Pair
) -> None:
    first, second = Authority(tmp_path / "a", "First"), Authority(tmp_path / "b", "Second")
    trusted = Path(shutil.copy(first.certificate, tmp_path / "trusted.pem"))
    server = start(bundle, *options(pair, trusted))
    client = trusting(authority, first.client("client"))
    assert ask(server, client) == 200
    shutil.copy(second.certificate, trusted)
    time.sleep(1.1)
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(server, client)
    assert ask(server, trusting(authority, second.client("client"))) == 200


def test_an_expired_certificate_is_served_and_told(
    start: Start, bundle: Path, authority: Authority
) -> None:
    server = start(bundle, *options(authority.server("expired", timedelta(days=-1))))
    assert "the TLS certificate has expired" in server.told()
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        ask(server, trusting(authority))


def test_the_end_of_a_certificate_is_read(authority: Authority) -> None:
    for days in (-40_000 // 365, 3, 10_000, 20_000):  # UTCTime, and GeneralizedTime after 2049
        end = expiry(authority.server("lasting", timedelta(days=days)).certificate.read_text())
        assert abs(end - datetime.now(UTC) - timedelta(days=days)) < timedelta(minutes=5)


@pytest.mark.parametrize("days", [-1, 3, 100])
def test_only_what_ends_soon_is_told(
    authority: Authority, capsys: pytest.CaptureFixture[str], days: int
) -> None:
    pair = authority.server("ending", timedelta(days=days))
    Certificates(TlsSettings(certificate=pair.certificate, key=pair.key))
    assert ("expire" in capsys.readouterr().err) is (days < 14)


def test_a_key_open_to_others_is_told(
    tmp_path: Path, pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    key = Path(shutil.copy(pair.key, tmp_path / "open.key"))
    key.chmod(0o644)
    Certificates(TlsSettings(certificate=pair.certificate, key=key))
    assert "others may read or write the TLS key" in capsys.readouterr().err


def test_files_that_will_not_do(tmp_path: Path, authority: Authority, pair: Pair) -> None:
    other = authority.server("other")
    text = tmp_path / "text.pem"
    text.write_text("hello")
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    secret = encrypted(pair.key, tmp_path / "secret.key")
    none = tmp_path / "none.pem"
    for certificate, key, client_ca, told in (
        (none, pair.key, None, rf"tls.certificate: {none}: cannot be read: No such file"),
        (pair.certificate, none, None, rf"tls.key: {none}: cannot be read: No such file"),
        (pair.certificate, other.key, None, r"server\.pem and .*other\.key are not a pair"),
        (pair.certificate, secret, None, rf"tls.key: {secret}: the key is encrypted.*openssl"),
        (text, pair.key, None, rf"tls.certificate: {text}: there is no PEM certificate"),
        (pair.key, pair.key, None, r"tls.certificate: .*: there is no PEM certificate"),
        (pair.certificate, text, None, rf"tls.key: {text}: there is no PEM private key"),
        (broken, pair.key, None, rf"tls: {broken}, .*: cannot be used"),
        (tmp_path, pair.key, None, r"tls.certificate: .*: cannot be read: Is a directory"),
        (pair.certificate, pair.key, none, rf"tls.client_ca: {none}: cannot be read"),
        (pair.certificate, pair.key, text, rf"tls.client_ca: {text}: there is no PEM"),
        (pair.certificate, pair.key, broken, rf"tls.client_ca: {broken}: cannot be used"),
        (None, pair.key, None, r"tls.certificate: missing"),
        (pair.certificate, None, None, r"tls.key: missing"),
        (None, None, authority.certificate, r"tls.certificate: missing"),
    ):
        settings = TlsSettings(certificate=certificate, key=key, client_ca=client_ca)
        with pytest.raises(ConfigError, match=told):
            Certificates(settings)


def test_the_command_names_file_and_cause(start: Start, bundle: Path, pair: Pair) -> None:
    server = start(bundle, *options(Pair(pair.certificate, Path("none.key"))), wait=False)
    assert server.process.wait(20) == 2
    assert "tls.key: none.key: cannot be read: No such file" in server.told()
    assert "Traceback" not in server.told()
    server = start(bundle, "--tls-client-ca", "ca.pem", wait=False)
    assert server.process.wait(20) == 2
    assert "tls.certificate: missing" in server.told()


def test_with_tls_a_public_address_is_fine(start: Start, bundle: Path, pair: Pair) -> None:
    server = start(bundle, "--host", "0.0.0.0", *options(pair), wait=False)
    await_told(server, "ready: ")
    assert "on https://0.0.0.0:" in server.told()
    assert "anyone who reaches it may ask" in server.told()


def _client_hello(authority: Authority) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    talk = trusting(authority).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        talk.do_handshake()
    return outgoing.read()


def test_urllib_needs_nothing_but_the_authority(guarded: Live, authority: Authority) -> None:
    url = f"https://localhost:{guarded.port}/v2/health/ready"
    with urllib.request.urlopen(url, timeout=20, context=trusting(authority)) as answer:
        assert answer.status == 200


def test_predict_brings_key_and_certificate(
    start: Start, bundle: Path, tmp_path: Path, authority: Authority, pair: Pair
) -> None:
    text, key = generated("alice", [Scope.INFER])
    keys = tmp_path / "keys.txt"
    keys.write_text(f"{key.line()}\n")
    keys.chmod(0o600)
    picture = tmp_path / "digit.png"
    Image.fromarray(digits_rows(1)[0, :, :, 0]).save(picture)
    client = authority.client("client")
    both = tmp_path / "both.pem"
    both.write_bytes(client.certificate.read_bytes() + client.key.read_bytes())
    server = start(bundle, "--keys", str(keys), *options(pair, authority.certificate))

    def predict(*more: str, **environment: str) -> subprocess.CompletedProcess[str]:
        url = f"https://127.0.0.1:{server.port}"
        command = [sys.executable, "-m", "pipeline.cli", "predict", url, str(picture), *more]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    trust, own = ("--ca", str(authority.certificate)), ("--cert", str(both))
    done = predict(*trust, *own, SLIPWAY_API_KEY=text)
    assert done.returncode == 0, done.stderr
    for failed in (
        predict(*trust, *own),
        predict(*trust, *own, SLIPWAY_API_KEY="wrong"),
        predict(*trust, SLIPWAY_API_KEY=text),
        predict(*own, SLIPWAY_API_KEY=text),
    ):
        assert failed.returncode == 1 and failed.stderr.startswith("error: ")
        assert "Traceback" not in failed.stderr and text not in failed.stderr
