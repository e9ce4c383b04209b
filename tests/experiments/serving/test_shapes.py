"""Sources in three forms, and the JSON around them."""

from experiments.serving import shapes

PASSAGES = [
    {"title": "One", "uri": "file:///one", "document_id": "1"},
    {"title": "", "uri": "", "document_id": "2"},
]
SPANS = [
    {"start": 0, "end": 4, "passages": PASSAGES},
    {"start": 4, "end": 9, "passages": PASSAGES[:1]},
]


def test_citations_name_each_place_once():
    assert shapes.citations(SPANS) == ["file:///one", "2"]
    assert shapes.citations([]) == []


def test_annotations_are_those_of_each_span():
    made = shapes.annotations(SPANS)
    assert {each["type"] for each in made} == {"url_citation"}
    assert [each["url_citation"] for each in made] == [
        {"start_index": 0, "end_index": 4, "title": "One", "url": "file:///one"},
        {"start_index": 0, "end_index": 4, "title": "2", "url": ""},
        {"start_index": 4, "end_index": 9, "title": "One", "url": "file:///one"},
    ]
