"""The configurations of experiments: each module has a `get_config` with one argument."""
