"""Documents on disk come back as they were, and leave memory."""

from data_pipeline.text.document_store import Spool, Writer
from data_pipeline.text.documents import Document


def test_documents_come_back_from_disk_as_they_were(tmp_path):
    odd = 'line\r\n\u2028 \x00 \U0001f600 \\ " \u0301'
    documents = [Document("a", odd, "title", "uri", "licence"), Document("b", "x")]
    folders = [tmp_path / "one", tmp_path / "none", tmp_path / "two"]
    for folder, held in zip(folders, (documents, [], documents[:1]), strict=True):
        folder.mkdir()
        with Writer(folder) as writer:
            for document in held:
                writer.append(document)
    with Spool(folders) as spool:
        assert len(spool) == 3
        assert [spool.place(n) for n in range(3)] == [(0, 0), (0, 1), (2, 0)]
        for number in (2, 1, 0, 1):
            assert spool.read(number) == [*documents, documents[0]][number]
