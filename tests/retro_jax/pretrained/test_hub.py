"""Names of the hub: their form, and a copy that was fetched before. No network is needed."""

import pytest

from retro_jax.pretrained import hub


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("owner/name", True),
        ("owner/name-1.5B@v1.0", True),
        ("name", False),
        ("a/b/c", False),
        ("/a/b", False),
        ("../b", False),
        ("a/b@", False),
    ],
)
def test_the_form_of_a_name(name, is_one):
    assert hub.is_name(name) == is_one
    if not is_one:
        with pytest.raises(ValueError, match="no name of the hub"):
            hub.fetched(name)


def test_what_was_fetched_before_needs_no_network(tmp_path, monkeypatch):
    import huggingface_hub

    folder = tmp_path / "models--owner--tiny" / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (folder / "retro_config.json").touch()
    refs = tmp_path / "models--owner--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    download = huggingface_hub.snapshot_download

    def offline(*args, **settings):
        return download(*args, cache_dir=tmp_path, local_files_only=True, **settings)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    assert hub.fetched("owner/tiny") == folder
    with pytest.raises(ValueError, match=r"^'owner/other' could not be fetched"):
        hub.fetched("owner/other")
