"""Which files of a stored database are copied, where training sequences are streamed."""

import re

_TRAINING_RECORDS = re.compile(r"dataset/.*/retro-train\.tfrecord-[^/]*")


def is_no_sequence(file: str) -> bool:
    """Whether a file is anything but a record file of training sequences."""
    return not _TRAINING_RECORDS.fullmatch(file)


def is_read_by_training(file: str) -> bool:
    """Whether training reads a file at its start: tokenizer, other sequences, descriptions."""
    of_training = file.startswith(("tokenizer/", "dataset/")) or file.endswith(".json")
    return of_training and is_no_sequence(file)
