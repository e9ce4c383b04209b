"""How a router asks all shards: replicas, hedging, circuit breakers, merging."""
