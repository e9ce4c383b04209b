"""A tokenizer is read from a file of any kind with what stands beside it."""

import json

import pytest
import tokenizers

from data_pipeline.text.tokenizer import Tokenizer
from data_pipeline.text.tokenizers.byte_pair_model import DECLARED
from tests import fast_tokenizers
from tests.fast_tokenizers import SPECIALS, TEMPLATE, TEXT, gguf, gguf_values

DESCRIPTION = fast_tokenizers.byte_level()
CONFIG = {
    "eos_token": "<|im_end|>",
    "bos_token": {"content": "<|im_start|>", "special": True},
    "pad_token": "<|im_end|>",
    "chat_template": TEMPLATE,
}


def test_a_folder_and_its_file_are_one(tmp_path):
    folder = fast_tokenizers.folder(tmp_path / "decoder", DESCRIPTION, **CONFIG)
    tokenizer = Tokenizer.load(folder)
    assert (
        tokenizer.fingerprint == Tokenizer.load(folder / "tokenizer.json").fingerprint
    )
    assert tokenizer.chat_template == TEMPLATE
    # The end of a turn is no end of a document.
    assert (tokenizer.eod_id, tokenizer.bos_id, tokenizer.pad_id) == (0, 0, 2)
    assert Tokenizer(tokenizer.model, "it").chat_template == TEMPLATE


def test_newer_and_older_forms_of_what_stands_beside(tmp_path):
    named = [{"name": "tool", "template": "x"}, {"name": "default", "template": "y"}]
    description = json.loads(json.dumps(DESCRIPTION).replace("<|endoftext|>", "<|c|>"))
    folder = fast_tokenizers.folder(
        tmp_path / "decoder", description, chat_template=named
    )
    (folder / "config.json").write_text('{"eos_token_id": [3, 4]}')
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.eod_id, tokenizer.chat_template) == (3, "y")
    (folder / "chat_template.jinja").write_text("z")
    assert Tokenizer.load(folder).chat_template == "z"


@pytest.mark.parametrize(
    "config",
    [
        "no json",
        '{"eos_token": 7, "chat_template": [3, {"name": ["x"]}], "pad_token": []}',
        "[1]",
    ],
)
def test_what_stands_beside_may_be_damaged(config, tmp_path):
    folder = fast_tokenizers.folder(tmp_path / "decoder", DESCRIPTION)
    (folder / "tokenizer_config.json").write_text(config)
    (folder / "config.json").write_text('{"eos_token_id": [], "bos_token_id": -1}')
    assert Tokenizer.load(folder).eod_id == 0


def test_a_folder_with_sentencepiece(tmp_path):
    Tokenizer.train(TEXT, 300, tmp_path / "tokenizer.model")
    assert Tokenizer.load(tmp_path).special_ids == {"<pad>": 0, "<eod>": 1}


def test_a_gguf_gives_what_the_json_gives(tmp_path):
    path = tmp_path / "decoder.gguf"
    path.write_bytes(gguf(gguf_values(DESCRIPTION)))
    tokenizer, plain = (
        Tokenizer.load(path),
        Tokenizer(json.dumps(DESCRIPTION).encode(), ""),
    )
    for text in TEXT:
        assert tokenizer.encode(text).tolist() == plain.encode(text).tolist()
    assert tokenizer.special_ids == {name: i for i, name in enumerate(SPECIALS)}
    assert tokenizer.eod_id == tokenizer.bos_id == 0
    assert tokenizer.chat_template == TEMPLATE
    kept = json.loads(tokenizer.model)
    assert kept.pop(DECLARED)["bos_token"] == "<|im_start|>"
    tokenizers.Tokenizer.from_str(json.dumps(kept))  # which takes no key of others


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "llama"}, "of the kind llama, which only a tokenizer.json"),
        ({"model": 7}, "of the kind 7"),
        ({"pre": "viking"}, "pre-tokenizer viking is not known"),
        ({"pre": ["x"]}, "is not known"),
        ({"tokens": 7}, "has no tokens"),
        ({"token_type": [1]}, "no type for each token"),
        ({"merges": "x"}, "has no merges"),
        ({"merges": ["zzz q"]}, "token that it has not"),
    ],
    ids=str,
)
def test_a_gguf_that_is_unfit_is_refused_by_name(changes, says, tmp_path):
    path = tmp_path / "decoder.gguf"
    changed = {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    path.write_bytes(gguf(gguf_values(DESCRIPTION) | changed))
    with pytest.raises(ValueError, match=says) as error:
        Tokenizer.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_gguf_with_a_token_twice_is_refused(tmp_path):
    path, values = tmp_path / "decoder.gguf", gguf_values(DESCRIPTION)
    values["tokenizer.ggml.tokens"][-1] = values["tokenizer.ggml.tokens"][-2]
    path.write_bytes(gguf(values))
    with pytest.raises(ValueError, match="once|token that it has not|two ids"):
        Tokenizer.load(path)


def test_what_holds_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no tokenizer.json and no"):
        Tokenizer.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        Tokenizer.load(tmp_path / "absent.gguf")
    (tmp_path / "tokenizer.json").write_text("[1]")
    with pytest.raises(ValueError, match="not a tokenizer.json"):
        Tokenizer.load(tmp_path)
