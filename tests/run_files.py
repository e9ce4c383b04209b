"""The files that a run leaves behind, made up: what a report is made from."""

import dataclasses
import json

from data_pipeline.database import Found
from experiments.configs import tiny
from tests import tiny_decoder

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


def retrofit_results(**changes):
    """Those of a pretrained decoder that gains where there is much to copy."""
    found = results(documents=69)
    found["conditions"] = _retrofit_conditions(0.95, (-0.07, -0.17, 0.001))
    by_run = []
    for low, end, on in ((0, 8, -0.04), (8, 16, -0.12), (16, None, -0.5)):
        conditions = _retrofit_conditions(1.0, (-0.02, on, 0.001))
        by_run.append(
            {
                "from_tokens": low,
                "below_tokens": end,
                "chunks": 1200 + low,
                "conditions": conditions,
            }
        )
    beside = _retrofit_conditions(0.8, (-0.06, -0.16, 0.001))
    beside["random unlimited"] = condition(0.81, off=0.8, ends=(-0.01, 0.03))
    beside["prompt"] = condition(0.6, off=0.8, ends=(-0.25, -0.15))
    return found | {
        "init_from": {"step": 0, "parameters": "x", "freeze": True},
        "by_longest_run": by_run,
        "prompt": {
            "sequences": 24,
            "flops_of_chunk": {"prompt": 6e10, "kept": 7e8, "anew": 4e10},
            "conditions": beside,
        },
        "facts": {
            "asked": 80,
            "stated": 60,
            "documents": 20,
            "right": {
                "off": 0.05,
                "before": 0.0,
                "on": 0.65,
                "prompt": 0.7,
                "edited": 0.6,
                "sentence": 0.25,
            },
            "counts": {
                **dict.fromkeys(("off", "before", "on", "prompt", "edited"), 60),
                "sentence": 40,
            },
            "examples": [
                {
                    "prompt": "Peru\n\nThe population of Peru is",
                    "answer": "12,345",
                    "edited_answer": "73,829",
                    "said": {"off": "ab…", "on": "12,345", "edited": "73,8…"},
                }
            ],
        },
        "gates": {
            "18": {
                "before": [0.0, 1.0, 1.0],
                "after": [0.1, 1.4, -0.2],
                "attention": [0.05, 0.8, 0.3],
            },
            "20": {"before": [0.0, 0.0, 1.0], "after": [0.0, 0.3, 0.9]},
        },
        **changes,
    }


def _retrofit_conditions(off, changes):
    """Conditions by what they change; intervals of a fifth to either side, of 0.01 at least."""
    found = {"off": condition(off, off=off, little=off)}
    for name, change in zip(("untrained", "on", "random"), changes, strict=True):
        half = max(abs(change) / 5, 0.01)
        ends = change - half, change + half
        found[name] = condition(off + change, off=off, ends=ends, little=off + change)
    return found


LIMITS = {
    "max_distance": 0.9,
    "least_tokens": 8,
    "bits_per_byte": 0.8,
    "share_read": 0.75,
    "tried": [
        {"max_distance": far, "least_tokens": least, "bits_per_byte": 1.0 - far / 10}
        for far in (-1.0, 0.5, 0.9)
        for least in (1, 8)
    ],
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


def retrofit_settings():
    """As `settings`, of a pretrained decoder that reads neighbours itself."""
    found = settings()
    decoder = tiny_decoder.config(cca_layers=(2, 4))
    found["config"]["model"] = json.loads(json.dumps(dataclasses.asdict(decoder)))
    return found | {
        "config": found["config"] | {"init_from": "/home/x/models/a|b.gguf"}
    }


def settings(arg=""):
    return {
        "config": json.loads(json.dumps(dataclasses.asdict(tiny.get_config(arg)))),
        "commit": "v0.1-3-gabc1234",
        "workdir": "my runs/a",
    }
