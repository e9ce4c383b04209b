"""A bank of facts that nobody can know: countries that do not exist, in the Factbook's form.

    python -m tools.fact_bank --out=FOLDER [--documents=500] [--seed=0]

A database that is built of the folder holds out a part of its documents. `retro evaluate`
asks questions that these answer (`evaluation.num_facts`): before they are in the database,
with them, and once they state other numbers. Without its passages a model has nothing but
chance.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u")]
_GOODS = ("copper", "tea", "wool", "salt", "timber", "glass", "barley", "amber")
_LANDS = ("plains", "hills", "marshes", "a high plateau", "steppe", "dense forest")


def documents(count: int, seed: int) -> Iterator[dict]:
    """Gives records with id, title and text; each name and number is drawn by itself."""
    rng, names = np.random.default_rng(seed), set[str]()
    while len(names) < count:
        name = "".join(rng.choice(_SYLLABLES, 4)).capitalize()
        if name in names:
            continue
        names.add(name)
        goods, land = rng.choice(_GOODS, 2, replace=False), rng.choice(_LANDS)
        yield {
            "id": f"{name.lower()}.txt",
            "title": name,
            "text": (
                f"{name}\n\n"
                f"Population of {name}: total: {rng.integers(10_000, 99_999_999):,} "
                "(2025 est.)\n"
                f"Area of {name}: total: {rng.integers(1_000, 999_999):,} sq km\n"
                f"Terrain of {name}: mostly {land}\n"
                f"Coastline of {name}: {rng.integers(100, 9_999):,} km\n"
                f"Median age of {name}: total: {rng.integers(150, 500) / 10} years\n"
                f"Exports of {name}: {goods[0]}, {goods[1]}\n"
            ),
        }


def main() -> None:
    """Writes the bank as a file of JSON lines."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.fact_bank",
        description="Writes documents with facts that stand nowhere else.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", required=True, help="folder to write into")
    parser.add_argument("--documents", type=int, default=500, help="how many [500]")
    parser.add_argument("--seed", type=int, default=0, help="of names and numbers [0]")
    args = parser.parse_args()
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    lines = map(json.dumps, documents(args.documents, args.seed))
    (folder / "facts.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
