"""The database: open it, search it, change it."""

from data_pipeline.database.database import Database
from data_pipeline.database.results import Found, Retrieved
from data_pipeline.database.snapshot import Snapshot

__all__ = ["Database", "Found", "Retrieved", "Snapshot"]
