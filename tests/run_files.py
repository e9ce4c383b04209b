"""The files that a run leaves behind, made up: what a report is made from."""

import dataclasses
import json

from data_pipeline.database import Found
from experiments.configs import tiny

MANIFEST = {
    "chunk_len": 64,
    "chunks": {"train": 1000, "validation": 20, "test": 40},
    "corpus": "notes/|<b>.jsonl",
    "documents": {
        "exact_duplicates": 3,
        "near_duplicates": 17,
        "skipped": {"undecodable": {"count": 2, "names": ["a`b.txt", "<i>.bin"]}},
        "train": {"documents": 120, "size_bytes": 2_500_000},
        "validation": {"documents": 4, "size_bytes": 30_000},
        "test": {"documents": 6, "size_bytes": 60_000},
    },
    "embedder": "minilm",
    "embedding_width": 384,
    "fingerprint": "0123456789abcdef",
    "index": {
        "kind": "ExactIndex",
        "queries": 60,
        "recall@2": 0.9693,
        "recall@10": 0.9581,
        "queries_per_s": 12_345.6,
    },
    "tokenizer_fingerprint": "fedcba9876543210",
    "vocab_size": 4096,
}


def condition(bits_per_byte, off=2.0, ends=(0.0, 0.0), little=2.2):
    return {
        "bits_per_byte": bits_per_byte,
        "interval": (bits_per_byte - 0.1, bits_per_byte + 0.1),
        "minus_off": bits_per_byte - off,
        "minus_off_interval": ends,
        "little_overlap_bits_per_byte": little,
    }


def source(document_id="train/one.py", chunk_id=7, text="one two three four"):
    found = Found(
        text=text,
        continuation=" and five",
        document_id=document_id,
        title="A title",
        uri="https://example.org/one",
        licence="MIT",
        offset=12_345,
        distance=0.4321,
        chunk_id=chunk_id,
    )
    return dataclasses.asdict(found)


def sample(text="zero one two three nine", sources=None):
    return {
        "prompt": "The opening",
        "text": text,
        "truth": "What is true",
        "document": {"id": "test/held_out.py", "title": "", "uri": "file:x"},
        "sources": [source()] if sources is None else sources,
    }


def results(on=None, random=None, documents=50, samples=None):
    """Retrieval helps, unless other conditions are given."""
    return {
        "fingerprint": "x",
        "step": 400,
        "split": "test",
        "documents": documents,
        "bytes": 60_000.0,
        "tokens": 20_000.0,
        "little_overlap_share": 0.6,
        "conditions": {
            "off": condition(2.0, little=2.3),
            "on": on or condition(1.9, ends=(-0.1512, -0.0523), little=2.2511),
            "random": random or condition(2.01, ends=(-0.005, 0.02), little=2.31),
        },
        "samples": [sample()] if samples is None else samples,
    }


def metrics(steps=60):
    return [
        {
            "step": 10 * (row + 1),
            "loss_nats_per_token": 5.0,
            "bits_per_byte": 4.0 - row / steps,
            "gradient_norm": 1.0,
            "learning_rate": 1e-3,
            "tokens_per_s": 2000.0,
            "waiting_for_data_share": 0.01,
        }
        for row in range(steps)
    ]


def settings(arg=""):
    return {
        "config": json.loads(json.dumps(dataclasses.asdict(tiny.get_config(arg)))),
        "commit": "v0.1-3-gabc1234",
        "workdir": "my runs/a",
    }
