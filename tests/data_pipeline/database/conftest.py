"""Copies of the tiny database that a test may change."""

import shutil
from pathlib import Path

import pytest

from data_pipeline.database import Database
from tests import tiny_corpus


@pytest.fixture(scope="session")
def texts() -> dict[str, str]:
    """The texts of the tiny corpus, by id."""
    return tiny_corpus.texts()


@pytest.fixture
def folder(tiny_database, tmp_path) -> Path:
    """A copy of the tiny database."""
    return shutil.copytree(tiny_database.folder, tmp_path / "database")


@pytest.fixture
def database(folder) -> Database:
    """A copy of the tiny database, open."""
    return Database.open(folder)
