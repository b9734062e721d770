"""Keys, TLS and compressed messages at the gRPC door."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from pipeline.config import ConfigError
from serving.config import TlsSettings
from serving.doors.access import Needed, Scope, generated
from serving.doors.grpc.access import credentials, scope_of
from serving.proto.inference import HEALTH, INFERENCE, OLDER_REFLECTION, REFLECTION
from tests.serving.bundles import digits_rows
from tests.serving.certificates import Authority, Pair
from tests.serving.live import Live
from tests.serving.rpc_client import Client, infer_request

Start = Callable[..., Live]

DIGITS = infer_request("digits-test", {"image": digits_rows(1)})
OPEN = [
    f"/{INFERENCE}/ServerLive",
    f"/{INFERENCE}/ServerReady",
    f"/{HEALTH}/Check",
    f"/{HEALTH}/Watch",
]
INFER = [
    *(
        f"/{INFERENCE}/{name}"
        for name in (
            "ModelInfer",
            "ModelStreamInfer",
            "ModelReady",
            "ServerMetadata",
            "ModelMetadata",
            "ModelConfig",
            "ModelStatistics",
            "SystemSharedMemoryStatus",
            "Unknown",
        )
    ),
    f"/{REFLECTION}/ServerReflectionInfo",
    f"/{OLDER_REFLECTION}/ServerReflectionInfo",
    "/unknown.Service/Method",
]
ADMIN = [f"/{INFERENCE}/RepositoryModelLoad", f"/{INFERENCE}/RepositoryModelUnload"]
EITHER = f"/{INFERENCE}/RepositoryIndex"
SCOPES: dict[str, Needed] = {
    **dict.fromkeys(INFER, Scope.INFER),
    **dict.fromkeys(ADMIN, Scope.ADMIN),
    EITHER: (Scope.INFER, Scope.ADMIN),
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Scope, str]]:
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    made = {scope: generated(scope.value, [scope]) for scope in Scope}
    path.write_text("".join(f"{key.line()}\n" for _, key in made.values()))
    path.chmod(0o600)
    return path, {scope: text for scope, (text, _) in made.items()}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def guarded(
    bundle: Path,
    keys: tuple[Path, dict[Scope, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Live]:
    options = ("--keys", str(keys[0]), "--grpc-port", "0")
    live = Live(bundle, tmp_path_factory.mktemp("guarded"), *options)
    yield live
    assert live.stop() == 0
    for told in (live.told(), live.out.read_text()):
        assert "Traceback" not in told and "internal error" not in told
        assert not any(text.removeprefix("slipway_")[:8] in told for text in keys[1].values())


def refused(client: Client, path: str, *metadata: tuple[str, str]) -> str:
    """The code's name; a method that answers, or has no end, has none."""
    try:
        for _ in client.channel.stream_stream(path)(iter([b""]), timeout=20, metadata=metadata):
            return ""
    except grpc.RpcError as error:
        return str(error.code().name)
    return ""


@pytest.mark.parametrize("path", OPEN)
def test_health_is_open(guarded: Live, path: str) -> None:
    with Client(guarded.grpc_port) as client:
        assert refused(client, path) == ""
        assert refused(client, path, ("authorization", "Bearer wrong")) == ""


@pytest.mark.parametrize("path", SCOPES)
def test_every_method_with_every_key(
    guarded: Live, keys: tuple[Path, dict[Scope, str]], path: str
) -> None:
    with Client(guarded.grpc_port) as client:
        for metadata in ([], [("authorization", "Bearer wrong")], [("x-api-key", "wrong")]):
            assert refused(client, path, *metadata) == "UNAUTHENTICATED"
        for scope, text in keys[1].items():
            for item in (("authorization", f"Bearer {text}"), ("x-api-key", text)):
                code = refused(client, path, item)
                if scope is SCOPES[path] or (path == EITHER and scope is not Scope.METRICS):
                    assert code not in ("UNAUTHENTICATED", "PERMISSION_DENIED")
                else:
                    assert code == "PERMISSION_DENIED"


def test_the_table_is_of_all_there_is() -> None:
    assert all(scope_of(path) is None for path in OPEN)
    assert all(scope_of(path) == scope for path, scope in SCOPES.items())


def test_infer_with_a_key(guarded: Live, keys: tuple[Path, dict[Scope, str]]) -> None:
    item = ("authorization", f"Bearer {keys[1][Scope.INFER]}")
    with Client(guarded.grpc_port) as client:
        assert client.infer(DIGITS, metadata=[item])
        code, details = client.failure(DIGITS)
        assert code == "UNAUTHENTICATED" and "Authorization: Bearer KEY" in details
        code, details = client.failure(DIGITS, metadata=[item, item])
        assert code == "INVALID_ARGUMENT" and "given twice" in details


def test_refused_calls_are_in_the_access_log(guarded: Live) -> None:
    with Client(guarded.grpc_port) as client:
        client.failure(DIGITS)
    for _ in range(100):
        lines = guarded.out.read_text().splitlines()
        if any("ModelInfer" in line and '"status":"UNAUTHENTICATED"' in line for line in lines):
            return
        time.sleep(0.02)
    raise AssertionError(lines)


def options(pair: Pair, client_ca: Path | None = None) -> list[str]:
    given = ["--tls-cert", str(pair.certificate), "--tls-key", str(pair.key), "--grpc-port", "0"]
    return given + (["--tls-client-ca", str(client_ca)] if client_ca else [])


def trusting(authority: Authority, client: Pair | None = None) -> grpc.ChannelCredentials:
    own = (client.key.read_bytes(), client.certificate.read_bytes()) if client else (None, None)
    return grpc.ssl_channel_credentials(authority.certificate.read_bytes(), *own)


def code_of(server: Live, secure: grpc.ChannelCredentials | None) -> str:
    with Client(server.grpc_port, secure) as client:
        try:
            client.infer(DIGITS)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def test_tls(start: Start, bundle: Path, tmp_path: Path, authority: Authority) -> None:
    server = start(bundle, *options(authority.server("server")))
    assert f"and grpcs://127.0.0.1:{server.grpc_port}\n" in server.told()
    assert code_of(server, trusting(authority)) == "OK"
    assert code_of(server, None) == "UNAVAILABLE"
    assert code_of(server, trusting(Authority(tmp_path))) == "UNAVAILABLE"
    assert code_of(server, trusting(authority)) == "OK"


def test_client_certificates(
    start: Start, bundle: Path, tmp_path: Path, authority: Authority
) -> None:
    server = start(bundle, *options(authority.server("server"), authority.certificate))
    assert code_of(server, trusting(authority, authority.client("known"))) == "OK"
    stranger = Authority(tmp_path, "Test CA").client("stranger")
    for secure in (None, trusting(authority), trusting(authority, stranger)):
        assert code_of(server, secure) == "UNAVAILABLE"


def test_new_files_are_used_for_new_connections(
    start: Start, bundle: Path, tmp_path: Path, authority: Authority
) -> None:
    other = Authority(tmp_path / "other", "Other")
    old, new = authority.server("old"), other.server("new")
    used = Pair(tmp_path / "used.pem", tmp_path / "used.key")
    shutil.copy(old.certificate, used.certificate)
    shutil.copy(old.key, used.key)
    server = start(bundle, *options(used))
    with Client(server.grpc_port, trusting(authority)) as kept:
        assert kept.infer(DIGITS)
        shutil.copy(new.certificate, used.certificate)  # no pair yet
        time.sleep(1.1)
        assert code_of(server, trusting(authority)) == "OK"
        assert '"door":"grpc"' in server.told() and "are not a pair" in server.told()
        shutil.copy(new.key, used.key)
        time.sleep(1.1)
        assert code_of(server, trusting(other)) == "OK"
        assert code_of(server, trusting(authority)) == "UNAVAILABLE"
        assert kept.infer(DIGITS)


def test_unsound_files_are_refused_in_words(tmp_path: Path, authority: Authority) -> None:
    one, two = authority.server("one"), authority.server("two")
    with pytest.raises(ConfigError, match="are not a pair"):
        credentials(TlsSettings(certificate=one.certificate, key=two.key))
    with pytest.raises(ConfigError, match=r"none\.pem: cannot be read"):
        credentials(TlsSettings(certificate=tmp_path / "none.pem", key=two.key))


def test_compressed_messages_are_bounded_once_inflated(
    start: Start, bundle: Path, tmp_path: Path
) -> None:
    """A limit far below what the message holds, so that no noise is taken for inflating all of it."""
    limit, held = 4 << 20, 64 << 20
    (tmp_path / "serve.toml").write_text(f"[grpc]\nmessage_bytes = {limit}\n")
    server = start(bundle, "--grpc-port", "0", "--config", str(tmp_path / "serve.toml"))

    def peak() -> int:
        status = Path(f"/proc/{server.workers()[0]}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) << 10

    bomb = infer_request("digits-test", {"image": digits_rows(1)})
    bomb.raw_input_contents[0] = bytes(held)
    with Client(server.grpc_port, max_send_message_length=-1) as client:
        for coding in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            assert client.infer(DIGITS, compression=coding)
            before = peak()
            # It is this end that works: it packs all of it, which takes a busy machine long.
            code, _ = client.failure(bomb, compression=coding, timeout=60)
            assert code == "RESOURCE_EXHAUSTED"
            assert peak() - before < limit + (32 << 20) < held
            assert client.infer(DIGITS)
