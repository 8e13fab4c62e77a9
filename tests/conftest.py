"""Fixtures every room uses: an empty home, the shared public data where it is present."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from lorimer.database import open_database
from lorimer.registry.registry import Registry
from servers import S3, PostgreSQL, postgresql, s3

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["COLUMNS"] = "160"  # tables wrap alike wherever tests run

torch.set_num_threads(1)  # tiny models: a second thread costs more than it helps

settings.register_profile("ci", derandomize=True)  # CI judges a change, not the day's luck; people keep searching
if os.environ.get("CI"):
    settings.load_profile("ci")

SHARED_DATA = Path(os.environ.get("LORIMER_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh LORIMER_HOME for every test."""
    folder = tmp_path / "home"
    monkeypatch.setenv("LORIMER_HOME", str(folder))
    monkeypatch.delenv("LORIMER_DATABASE", raising=False)
    monkeypatch.delenv("LORIMER_STORAGE", raising=False)
    return folder


@pytest.fixture(scope="session")
def postgresql_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQL]:
    """A real PostgreSQL, for all tests that need one."""
    with postgresql(tmp_path_factory.mktemp("postgresql")) as server:
        yield server


@pytest.fixture
def postgresql_url(postgresql_server: PostgreSQL) -> str:
    """An empty database, already at the newest schema."""
    return postgresql_server.new_database()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each database in turn, as the one that is opened by default."""
    if request.param == "postgresql":
        monkeypatch.setenv("LORIMER_DATABASE", request.getfixturevalue("postgresql_url"))
    return str(request.param)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A real server that speaks S3, for all tests that need one."""
    with s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_url(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty folder in a bucket, with the variables its client reads."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server.new_prefix()


@pytest.fixture
def registry(home: Path) -> Iterator[Registry]:
    """An empty registry."""
    engine = open_database()
    yield Registry(engine)
    engine.dispose()


@pytest.fixture
def shared_data() -> Path:
    """The folder of real public data sets; tests that need it skip, saying so, where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the shared public data sets in {SHARED_DATA}")
    return SHARED_DATA
