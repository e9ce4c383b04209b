"""From a corpus to chunks: readers, copies, splits, tokenizer."""
