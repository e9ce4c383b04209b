"""The contract between clients and servers: messages, method stubs, TLS and tokens."""
