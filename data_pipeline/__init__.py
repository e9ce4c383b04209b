"""Text in, batches out, and retrieval. Knows numpy and files; never the model.

    corpora -> deduplicate -> tokenizer -> chunks -> embedder -> index -> neighbours
            -> dataset (TFRecord, by TFDS) -> batches (tf.data)

JAX is imported in `bert.py` alone, TensorFlow in `dataset.py` and `batches.py` alone. The
letters of array names are those of `retro_jax/__init__.py`. Token ids are uint16 or int32
on disk and int32 in batches; chunk ids and document rows are int64.
"""
