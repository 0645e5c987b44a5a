"""Databases for studies: a SQLite file, and a PostgreSQL server of the tests' own where its programs are installed."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

_FOLDERS = [os.environ["PATH"], *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))]
_PASSWORD = "not a secret"


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """URL of a server on loopback, without the database's name; it is empty and ends with the tests."""
    initdb, pg_ctl = (shutil.which(name, path=os.pathsep.join(_FOLDERS)) for name in ("initdb", "pg_ctl"))
    if initdb is None or pg_ctl is None:
        pytest.skip("no PostgreSQL server is installed (initdb and pg_ctl are not found)")
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    # The server refuses to run as root, and its user cannot look into pytest's own folders.
    user = "postgres" if os.geteuid() == 0 else None
    with TemporaryDirectory(prefix="adagrpo-postgresql-") as name:
        folder = Path(name)
        (folder / "password").write_text(_PASSWORD)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        identity = ("--username=tester", f"--pwfile={folder / 'password'}", "--auth=scram-sha-256")
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories='' -c fsync=off"
        data = f"--pgdata={folder / 'data'}"
        try:
            if user:
                shutil.chown(folder, user)
                shutil.chown(folder / "password", user)
            subprocess.run(
                [initdb, "--no-sync", "--no-locale", "--encoding=UTF8", *identity, data], check=True, user=user
            )
            start = [pg_ctl, data, "--wait", "--silent", f"--options={options}", f"--log={folder / 'log'}", "start"]
            subprocess.run(start, check=True, user=user)
        except (LookupError, subprocess.CalledProcessError) as error:
            pytest.skip(f"PostgreSQL does not start here: {error}")
        try:
            yield f"postgresql://tester:{_PASSWORD.replace(' ', '%20')}@127.0.0.1:{port}"
        finally:
            subprocess.run([pg_ctl, data, "--wait", "--silent", "--mode=immediate", "stop"], check=True, user=user)


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
