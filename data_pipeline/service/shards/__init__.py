"""A shard server's versions of the database."""
