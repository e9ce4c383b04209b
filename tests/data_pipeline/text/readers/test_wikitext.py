"""WikiText's marks are joined as in the usual score; sizes are the page's."""

from data_pipeline.text.readers.wikitext import detokenised, page_size

_PAGE = (
    " \n = Valkyria = \n \n The game 's story ( of 2 @,@ 500 words ) is well @-@ known , and "
    '" short " ; it cost 3 @.@ 5 . \n \n = = Plot = = \n \n It was 20 ° C . \n'
)


def test_words_and_marks_are_joined():
    assert detokenised(_PAGE) == (
        "\n= Valkyria =\n\nThe game's story (of 2,500 words) is well-known, and "
        '"short"; it cost 3.5.\n\n== Plot ==\n\nIt was 20°C.\n'
    )


def test_a_page_is_counted_as_it_is():
    words, size = page_size(_PAGE)
    assert words == len(_PAGE.split()) + 2  # an empty one at each end
    assert size == len(_PAGE.encode()) == len(_PAGE) + 1
