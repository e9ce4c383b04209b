"""How a database is built: the stages, and the engines that make their shards."""
