"""Text in, batches out, and retrieval. Knows numpy and files; never the model.

The rooms, each of which imports only those before it:

    storage     files that are whole or not there, stage records, arrays of many shards
    text        corpora, readers, copies and splits, tokenizer, chunks of 64 tokens
    embedding   vectors of chunks, by a frozen BERT
    index       nearest neighbours of vectors; words beside them
    database    a snapshot of a version, search, changes, integrity
    sequences   chunks with neighbours, packed, as a TFDS dataset and tf.data batches
    build       the stages of a database and the engines that make them
    service     retrieval over gRPC

JAX is imported in `embedding/bert.py` and `index/exact_jax.py` alone, TensorFlow in
`sequences/dataset.py` and `sequences/batches.py` alone. The letters of array names are those
of `retro_jax/__init__.py`. Token ids are uint16 or int32 on disk and int32 in batches; chunk
ids and document rows are int64.
"""
