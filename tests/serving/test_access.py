"""API keys without a server: the file, its owner and form, and what a key opens."""

from __future__ import annotations

import hashlib
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import ConfigError
from serving.doors import access
from serving.doors.access import (
    MAX_KEYS,
    PREFIX,
    Access,
    Key,
    Scope,
    generated,
    parse,
    presented,
    read,
)
from serving.errors import Forbidden, Unauthenticated

ROOT = Path(__file__).parents[2]
DIGEST = hashlib.sha256(b"x").hexdigest()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def written(path: Path, *keys: Key, mode: int = 0o600) -> Path:
    path.write_text("# who may ask\n\n" + "".join(f"{key.line()}\n" for key in keys))
    path.chmod(mode)
    return path


def slipway_key(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "key", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_key_opens_its_scopes_and_no_other(tmp_path: Path) -> None:
    text, key = generated("alice", [Scope.INFER, Scope.METRICS])
    doors = Access(written(tmp_path / "keys", generated("bob", [Scope.ADMIN])[1], key))
    assert doors.allow(Scope.INFER, text) == doors.allow(Scope.METRICS, text) == "alice"
    with pytest.raises(Forbidden, match=r"key 'alice' has the scope infer, metrics; .* admin"):
        doors.allow(Scope.ADMIN, text)


@pytest.mark.parametrize(
    "change",
    [
        lambda key: "",
        lambda key: key[:-1],
        lambda key: key + "a",
        lambda key: key.swapcase(),
        lambda key: key.removeprefix(PREFIX),
        lambda key: hashlib.sha256(key.encode()).hexdigest(),
        lambda key: key * 100,
        lambda key: "\udc80",
        lambda key: "schlüssel",
    ],
)
def test_other_texts_are_no_key(tmp_path: Path, change) -> None:
    text, key = generated("alice", list(Scope))
    with pytest.raises(Unauthenticated) as told:
        Access(written(tmp_path / "keys", key)).allow(Scope.INFER, change(text))
    assert not change(text) or change(text) not in str(told.value)


def test_every_key_is_compared_in_constant_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The right one being first spares none of the others."""
    keys = [generated(f"k{number}", [Scope.INFER]) for number in range(5)]
    doors = Access(written(tmp_path / "keys", *(key for _, key in keys)))
    compared: list[bytes] = []

    def watched(left: bytes, right: bytes) -> bool:
        compared.append(right)
        return secrets.compare_digest(left, right)

    monkeypatch.setattr(access, "compare_digest", watched)
    doors.allow(Scope.INFER, keys[0][0])
    assert compared == [key.digest for _, key in keys]
    with pytest.raises(Unauthenticated):
        doors.allow(Scope.INFER, "wrong")
    assert len(compared) == 10


def test_generated_keys_differ_and_hold_256_bits() -> None:
    texts = {generated("a", [Scope.INFER])[0] for _ in range(100)}
    assert len(texts) == 100
    assert all(len(text.removeprefix(PREFIX)) == 43 for text in texts)


@pytest.mark.parametrize(
    ("authorization", "api_key", "found"),
    [
        ("Bearer abc", "", "abc"),
        ("bearer   abc ", "", "abc"),
        ("", "abc", "abc"),
        ("Bearer abc", "def", "abc"),
        ("Basic abc", "def", "def"),
        ("Basic abc", "", ""),
        ("Bearer", "", ""),
        ("abc", "", ""),
        ("", "", ""),
    ],
)
def test_where_a_key_is_looked_for(authorization: str, api_key: str, found: str) -> None:
    assert presented(authorization, api_key) == found


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("alice:infer", "line 2: expected NAME:SCOPES:SHA-256 in three fields, got 2"),
        (f"alice:infer:{DIGEST}:", "line 2: expected NAME:SCOPES:SHA-256 in three fields, got 4"),
        (f"al ice:infer:{DIGEST}", "line 2: the first field"),
        (f"{PREFIX}abc:infer:{DIGEST}", "line 2: the first field"),
        (f":infer:{DIGEST}", "line 2: the first field"),
        (f"alice:all:{DIGEST}", "line 2: the second field: expected scopes out of infer, admin"),
        (f"alice::{DIGEST}", "line 2: the second field"),
        (f"alice:infer, admin:{DIGEST}", "line 2: the second field"),
        (f"alice:infer:{DIGEST[:-1]}", "line 2: the third field"),
        (f"alice:infer:{DIGEST.upper()}", "line 2: the third field"),
        (f"first:infer:{'0' * 64}", "line 2: the name 'first' is taken by line 1"),
        (f"alice:infer:{'a' * 64}", "line 2: the same key as line 1"),
    ],
)
def test_malformed_lines_are_named_and_not_repeated(line: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(f"first:infer:{'a' * 64}\n{line}\n", "keys.txt")
    assert str(error.value).startswith(f"keys.txt: {told}")
    assert line not in str(error.value)


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    try:
        parse(text, "keys")
    except ConfigError:
        return


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o620, 0o601, 0o644, 0o666])
def test_files_open_to_others_are_refused(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path / "keys", generated("alice", [Scope.INFER])[1], mode=mode)
    with pytest.raises(ConfigError, match=rf"mode {mode:04o}\): chmod 600"):
        Access(path)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
def test_a_group_may_read(tmp_path: Path, mode: int) -> None:
    Access(written(tmp_path / "keys", generated("alice", [Scope.INFER])[1], mode=mode))


def test_files_that_are_no_keys_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Access(tmp_path / "none")
    with pytest.raises(ConfigError, match="directory"):
        Access(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigError, match="expected a regular file"):
        Access(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"without a key.*slipway key"):
        Access(written(tmp_path / "empty"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "binary").chmod(0o600)
    with pytest.raises(ConfigError, match="not UTF-8"):
        Access(tmp_path / "binary")
    (tmp_path / "large").write_bytes(b"#" * (1 << 21))
    (tmp_path / "large").chmod(0o600)
    with pytest.raises(ConfigError, match="at most"):
        Access(tmp_path / "large")


def test_keys_are_not_without_number() -> None:
    lines = "".join(f"k{n}:infer:{n:064x}\n" for n in range(MAX_KEYS + 1))
    with pytest.raises(ConfigError, match="at most 1000 keys, got 1001"):
        parse(lines, "keys")


def test_a_link_to_the_file_will_do(tmp_path: Path) -> None:
    """Kubernetes mounts secrets so."""
    path = written(tmp_path / "keys", generated("alice", [Scope.INFER])[1])
    (tmp_path / "link").symlink_to(path)
    assert len(read(tmp_path / "link")) == 1


def test_changes_count_within_a_second(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alice, kept = generated("alice", [Scope.INFER])
    bob, added = generated("bob", [Scope.INFER])
    clock = Clock()
    path = written(tmp_path / "keys", kept)
    doors = Access(path, clock)
    written(path, added)
    assert doors.allow(Scope.INFER, alice) == "alice"  # not looked at yet
    clock.now += 1.01
    assert doors.allow(Scope.INFER, bob) == "bob"
    with pytest.raises(Unauthenticated):
        doors.allow(Scope.INFER, alice)
    assert "keys file read anew" in capsys.readouterr().err


def test_a_changed_file_that_is_unsound_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alice, key = generated("alice", [Scope.INFER])
    clock = Clock()
    path = written(tmp_path / "keys", key)
    doors = Access(path, clock)
    for spoil in (
        lambda: path.write_text(alice),
        lambda: path.write_text(""),
        lambda: path.chmod(0o666),
        path.unlink,
    ):
        spoil()
        for _ in range(3):
            clock.now += 1.01
            assert doors.allow(Scope.INFER, alice) == "alice"
        told = capsys.readouterr().err
        assert told.count("keys file refused, the keys of before stay") == 1
        assert alice not in told
    bob, other = generated("bob", [Scope.INFER])
    written(path, other)
    clock.now += 1.01
    assert doors.allow(Scope.INFER, bob) == "bob"


def test_the_command_keeps_only_the_hash(tmp_path: Path) -> None:
    first = slipway_key("alice", "--scope", "infer", folder=tmp_path)
    second = slipway_key(
        "bob", "--scope", "metrics", "--scope", "admin", "--file", "keys.txt", folder=tmp_path
    )
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    path = tmp_path / "keys.txt"
    assert path.stat().st_mode & 0o777 == 0o600
    assert first.stdout.strip() not in path.read_text()
    doors = Access(path)
    assert doors.allow(Scope.INFER, first.stdout.strip()) == "alice"
    assert doors.allow(Scope.ADMIN, second.stdout.strip()) == "bob"
    assert first.stdout.count("\n") == 1 and not first.stderr  # KEY=$(slipway key ...)


def test_the_command_refuses_what_the_server_would(tmp_path: Path) -> None:
    assert slipway_key("alice", "--scope", "infer", folder=tmp_path).returncode == 0
    path = tmp_path / "keys.txt"
    before = path.read_text()
    again = slipway_key("alice", "--scope", "infer", folder=tmp_path)
    assert again.returncode == 1 and "'alice' is taken by line 1" in again.stderr
    odd = slipway_key("a:b", "--scope", "infer", "--file", "new.txt", folder=tmp_path)
    assert odd.returncode == 2 and not (tmp_path / "new.txt").exists()
    assert slipway_key("carol", folder=tmp_path).returncode == 2  # no scope
    assert slipway_key("carol", "--scope", "all", folder=tmp_path).returncode == 2
    path.chmod(0o644)
    opened = slipway_key("carol", "--scope", "infer", folder=tmp_path)
    assert opened.returncode == 1 and "chmod 600" in opened.stderr
    assert path.read_text() == before
    for done in (again, odd, opened):
        assert not done.stdout and "Traceback" not in done.stderr


def test_the_command_mends_a_last_line_without_end(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(generated("alice", [Scope.INFER])[1].line())
    path.chmod(0o600)
    assert slipway_key("bob", "--scope", "infer", folder=tmp_path).returncode == 0
    assert [key.name for key in read(path)] == ["alice", "bob"]
