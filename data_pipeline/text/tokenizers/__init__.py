"""The models behind the tokenizer: SentencePiece, byte pairs, and the files they come in."""
