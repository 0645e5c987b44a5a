"""Databases for studies: a SQLite file, and a PostgreSQL server of the tests' own where its programs are installed."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
_PASSWORD = "not a secret"


def _program(name: str) -> str | None:
    found = shutil.which(name)
    return found or next((str(folder / name) for folder in _BINARIES if (folder / name).exists()), None)


def _run(*command: str | None, user: str | None) -> None:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, user=user)
    if result.returncode:
        pytest.skip(f"PostgreSQL does not start here: {result.stderr.strip().splitlines()[-1:]}")


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """URL of a server on loopback, without the database's name; it is empty and ends with the tests."""
    initdb, pg_ctl = _program("initdb"), _program("pg_ctl")
    if initdb is None or pg_ctl is None:
        pytest.skip("no PostgreSQL server is installed (initdb and pg_ctl are not found)")
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    # The server refuses to run as root, and its user cannot look into pytest's own folders.
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="adagrpo-postgresql-"))
    try:
        password = folder / "password"
        password.write_text(_PASSWORD)
        if user:
            try:
                shutil.chown(folder, user)
            except LookupError:
                pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
            shutil.chown(password, user)
        data = folder / "data"
        identity = ("--username=tester", f"--pwfile={password}", "--auth=scram-sha-256")
        _run(initdb, "--no-sync", "--no-locale", "--encoding=UTF8", *identity, f"--pgdata={data}", user=user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories='' -c fsync=off"
        control = (pg_ctl, f"--pgdata={data}", "--wait", "--silent")
        _run(*control, f"--options={options}", f"--log={folder / 'log'}", "start", user=user)
        try:
            yield f"postgresql://tester:{_PASSWORD.replace(' ', '%20')}@127.0.0.1:{port}"
        finally:
            subprocess.run([*map(str, control), "--mode=immediate", "stop"], check=True, user=user)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def postgresql_url(postgresql_server: str) -> Iterator[str]:
    """URL of an empty database."""
    import psycopg

    with psycopg.connect(f"{postgresql_server}/postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE study")
        yield f"{postgresql_server}/study"
        connection.execute("DROP DATABASE study WITH (FORCE)")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """URL of a file that is not there yet."""
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def storage_url(request: pytest.FixtureRequest) -> str:
    """URL of an empty database of either kind."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url
