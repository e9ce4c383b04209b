"""A job continues a prompt with passages of the run's database."""


def test_the_run_writes_text_with_its_sources(run, capsys):
    job, workdir = run
    # Random weights read nothing gladly: let every passage be read.
    again = job()
    cfg = again.run.cfg.evaluation
    cfg.max_distance, cfg.least_tokens = 9.0, 1
    cfg.prompt = "The population of Adele is " * 4
    again.generate()
    said = capsys.readouterr().out
    assert ">>>" in said and "[1] " in said and str(workdir.parent / "corpus") in said
