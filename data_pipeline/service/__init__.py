"""The database over gRPC: shard servers, a router before them, and a client.

`retrieval.proto` is the contract. A shard server searches some shards of the index; the
router embeds, asks all, merges exactly; the client is a `Retriever` like the database.
gRPC is imported here alone (the `serve` extra).
"""
