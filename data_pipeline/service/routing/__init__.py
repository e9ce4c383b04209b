"""The part of a router that asks all shards: replicas, hedges, breakers, merging."""
