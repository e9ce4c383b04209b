"""Addresses of servers: their form, the proxies on the way, and why nothing answers there.

An address is `host:port`, with an IPv6 address in brackets (`[::1]:50050`), or the path of a
socket (`unix:/run/retro.sock`). gRPC takes a proxy from the environment. What is on this
machine is never asked through one.
"""

import ipaddress
import os

_FORM = "host:port, with an IPv6 address in brackets as [::1]:50050"
# In the order in which gRPC looks at them.
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")


def checked(address: str) -> str:
    """Gives the address.

    Raises:
        ValueError: if it is no `host:port`, saying what it should be.
    """
    if address.startswith("unix:") and len(address) > len("unix:"):
        return address
    host, _, port = address.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    name = host[1:-1] if is_bracketed else host
    if (
        not name
        or not port.isascii()
        or not port.isdecimal()
        or not 0 < int(port) < 2**16
        or any(letter.isspace() or letter in "/@[]" for letter in name)
        or is_bracketed != (":" in name)
    ):
        raise ValueError(f"{address!r} is no address of a server: {_FORM}")
    return address


def joined(host: str, port: int) -> str:
    """The address of a port of a host, which may be an IPv6 address without brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_on_this_machine(address: str) -> bool:
    """Whether an address leads to this machine by its name: loopback or a socket's path."""
    host = address.rpartition(":")[0].strip("[]").lower()
    if address.startswith("unix:") or host in ("localhost", "localhost."):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:  # another name
        return False


def channel_options(address: str) -> list[tuple[str, int]]:
    """The options of a channel to an address, beside the caller's own."""
    return [
        ("grpc.enable_http_proxy", int(not is_on_this_machine(address))),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_reconnect_backoff_ms", 2000),
    ]


# gRPC's words for a failed connection, and what they mean to the person who asked for it.
_MEANINGS = {
    "WRONG_VERSION_NUMBER": "the server there has no TLS: use grpc://",
    "CERTIFICATE_VERIFY_FAILED": "no authority that is known vouches for the server's "
    "certificate: name its PEM file with tls_ca",
    "Socket closed": "the server there closed the connection: if it has TLS, use grpcs://",
    "Connection refused": "nothing listens there: start the service, or look at the port",
}


def explain(details: str, address: str) -> str:
    """Says why nothing answers at an address, where gRPC's own words do not."""
    if details.startswith(("DNS resolution failed", "errors resolving")):
        host = address.rpartition(":")[0]
        return f"no host has the name {host}: look at its spelling, or use its number"
    # A router's failed connections to its shards begin with other words.
    if not details.startswith("failed to connect"):
        return details
    found = (meaning for words, meaning in _MEANINGS.items() if words in details)
    return next(found, details) + _proxy_in_the_way(address)


def _proxy_in_the_way(address: str) -> str:
    """Names the variable by which a connection went through a proxy, if it may have."""
    if is_on_this_machine(address):
        return ""
    name = next((name for name in _PROXIES if os.environ.get(name)), None)
    excepted = os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy") or ""
    host = address.rpartition(":")[0]
    endings = [ending.strip() for ending in excepted.split(",") if ending.strip()]
    if name is None or any(host.endswith(ending) for ending in endings):
        return ""
    return (
        f" (the environment's {name}={os.environ[name]} is on the way: unset it, or name "
        f"{host} in no_proxy)"
    )
