"""Renders the Kubernetes manifests of a service with any number of shards.

    python -m deploy.render --shards=2 --out=deploy/kubernetes

`deploy/templates/` has a file for the database and its settings, one for the router, one for
who may reach whom, and one for a shard, which is rendered once a shard.
"""

import argparse
import string
import sys
from collections.abc import Sequence
from pathlib import Path

_TEMPLATES = Path(__file__).parent / "templates"
_REPLICAS, _PORT = 2, 50051  # of a shard


def manifests(num_shards: int) -> dict[str, str]:
    """Gives the text of each manifest by its file name; ValueError below one shard."""
    if num_shards < 1:
        raise ValueError(f"shards must be at least 1, is {num_shards}")
    shards = [f"retro-shard-{shard}" for shard in range(num_shards)]
    # The pods of a StatefulSet by their stable names, a line a shard.
    addresses = ",\\\n    ".join(
        "|".join(f"{name}-{pod}.{name}:{_PORT}" for pod in range(_REPLICAS))
        for name in shards
    )
    settings = {"num_shards": num_shards, "addresses": addresses}
    rendered = {
        "database.yaml": _render("database", **settings),
        "network.yaml": _render("network", port=_PORT),
        "router.yaml": _render("router"),
    }
    for shard in range(num_shards):
        rendered[f"shard-{shard}.yaml"] = _render(
            "shard", shard=shard, replicas=_REPLICAS, port=_PORT
        )
    return rendered


def _render(template: str, **values: object) -> str:
    text = (_TEMPLATES / f"{template}.yaml").read_text()
    return string.Template(text).substitute(values)


def write(num_shards: int, out: Path) -> None:
    """Writes the manifests into a folder.

    Raises:
        ValueError: if the folder has manifests of more shards, which `kubectl apply` would
            start too.
    """
    rendered = manifests(num_shards)
    for path in sorted(out.glob("shard-*.yaml")):
        if path.name not in rendered:
            raise ValueError(f"{path} is none of {num_shards} shards: remove it")
    out.mkdir(parents=True, exist_ok=True)
    for name, text in rendered.items():
        (out / name).write_text(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Renders as the flags say; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.render", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--shards", type=int, required=True, help="at least 1")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args(argv)
    try:
        write(args.shards, args.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
