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


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """URL of a file that is not there yet."""
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def postgresql_url() -> Iterator[str]:
    """URL of the empty database of a server on loopback, which ends with the test."""
    initdb, pg_ctl = (shutil.which(name, path=os.pathsep.join(_FOLDERS)) for name in ("initdb", "pg_ctl"))
    if initdb is None or pg_ctl is None:
        pytest.skip("no PostgreSQL server is installed (initdb and pg_ctl are not found)")
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    # The server refuses to run as root, and its user cannot look into pytest's own folders.
    user = "postgres" if os.geteuid() == 0 else None
    with TemporaryDirectory(prefix="adagrpo-postgresql-") as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories='' -c fsync=off"
        server = [pg_ctl, f"--pgdata={folder}/data", "--wait", "--silent", f"--log={folder}/log"]
        identity = ["--username=tester", "--auth=trust", "--no-locale", "--encoding=UTF8"]
        try:
            if user:
                shutil.chown(folder, user)
            subprocess.run([initdb, f"--pgdata={folder}/data", "--no-sync", *identity], check=True, user=user)
            subprocess.run([*server, f"--options={options}", "start"], check=True, user=user)
        except (LookupError, subprocess.CalledProcessError) as error:
            pytest.skip(f"PostgreSQL does not start here: {error}")
        try:
            yield f"postgresql://tester@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*server, "--mode=immediate", "stop"], check=True, user=user)
