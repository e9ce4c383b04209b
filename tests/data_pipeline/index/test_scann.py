"""ScaNN is imported without TensorFlow."""


def test_tensorflow_is_hidden_only_while_scann_is_imported():
    import subprocess
    import sys

    code = (
        "import sys; from data_pipeline.index import scann; scann.import_scann();"
        "assert 'tensorflow' not in sys.modules, 'left behind';"
        "assert 'jax' not in sys.modules, 'jax'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
