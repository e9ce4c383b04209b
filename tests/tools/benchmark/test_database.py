"""Opening, loading and searching a database are measured."""

from tools.benchmark import __main__


def test_a_database_is_measured(tiny_database, toy_embedder, capsys):
    folder = str(tiny_database.folder)
    assert __main__.main(["database", "--database", folder, "--rounds", "1"]) == 0
    out = capsys.readouterr().out
    for what in ("open, once", "load the index, once", "64 vectors", "passages"):
        assert what in out
    assert f"chunks: {len(tiny_database.snapshot.searchable)}" in out
    assert __main__.main(["database", "--database", "nowhere"]) == 2
    assert "nowhere holds no finished database" in capsys.readouterr().err
