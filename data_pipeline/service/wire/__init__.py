"""What goes over the wire: messages, method stubs, TLS and tokens."""
