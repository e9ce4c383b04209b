"""The page's files are those of its folder, and their headers let nothing else in."""

from experiments.serving import page_files


def test_every_file_of_the_page_can_be_asked_for():
    for path, (media_type, content) in page_files.files().items():
        assert path.startswith("/") and path.count("/") == 1 and content
        is_text = media_type.startswith("text/")
        assert is_text or media_type == "image/svg+xml"


def test_a_browser_runs_and_loads_nothing_of_others():
    policy = page_files.HEADERS["Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("require-trusted-types-for") == "'script'"
    assert set(rules.values()) == {"'none'", "'self'"}
    assert rules["default-src"] == rules["frame-ancestors"] == "'none'"
