from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DatabaseState(_message.Message):
    __slots__ = ("fingerprint", "version")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    version: int
    def __init__(self, fingerprint: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class Vectors(_message.Message):
    __slots__ = ("data", "width")
    DATA_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    width: int
    def __init__(self, data: _Optional[bytes] = ..., width: _Optional[int] = ...) -> None: ...

class TokenChunks(_message.Message):
    __slots__ = ("data", "chunk_len")
    DATA_FIELD_NUMBER: _ClassVar[int]
    CHUNK_LEN_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    chunk_len: int
    def __init__(self, data: _Optional[bytes] = ..., chunk_len: _Optional[int] = ...) -> None: ...

class Texts(_message.Message):
    __slots__ = ("texts",)
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, texts: _Optional[_Iterable[str]] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("texts", "token_chunks", "vectors", "k", "exclude_documents", "passage_len", "without_sources")
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    PASSAGE_LEN_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_SOURCES_FIELD_NUMBER: _ClassVar[int]
    texts: Texts
    token_chunks: TokenChunks
    vectors: Vectors
    k: int
    exclude_documents: _containers.RepeatedScalarFieldContainer[str]
    passage_len: int
    without_sources: bool
    def __init__(self, texts: _Optional[_Union[Texts, _Mapping]] = ..., token_chunks: _Optional[_Union[TokenChunks, _Mapping]] = ..., vectors: _Optional[_Union[Vectors, _Mapping]] = ..., k: _Optional[int] = ..., exclude_documents: _Optional[_Iterable[str]] = ..., passage_len: _Optional[int] = ..., without_sources: bool = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("results", "passages", "database", "partial", "missing_shards")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    PASSAGES_FIELD_NUMBER: _ClassVar[int]
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    MISSING_SHARDS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[Neighbours]
    passages: _containers.RepeatedCompositeFieldContainer[Passage]
    database: DatabaseState
    partial: bool
    missing_shards: _containers.RepeatedCompositeFieldContainer[MissingShard]
    def __init__(self, results: _Optional[_Iterable[_Union[Neighbours, _Mapping]]] = ..., passages: _Optional[_Iterable[_Union[Passage, _Mapping]]] = ..., database: _Optional[_Union[DatabaseState, _Mapping]] = ..., partial: bool = ..., missing_shards: _Optional[_Iterable[_Union[MissingShard, _Mapping]]] = ...) -> None: ...

class Neighbours(_message.Message):
    __slots__ = ("chunk_ids", "distances")
    CHUNK_IDS_FIELD_NUMBER: _ClassVar[int]
    DISTANCES_FIELD_NUMBER: _ClassVar[int]
    chunk_ids: _containers.RepeatedScalarFieldContainer[int]
    distances: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, chunk_ids: _Optional[_Iterable[int]] = ..., distances: _Optional[_Iterable[float]] = ...) -> None: ...

class MissingShard(_message.Message):
    __slots__ = ("shard", "reason")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    shard: int
    reason: str
    def __init__(self, shard: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Passage(_message.Message):
    __slots__ = ("chunk_id", "tokens", "length", "text", "continuation", "document_id", "title", "uri", "offset", "licence")
    CHUNK_ID_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CONTINUATION_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    chunk_id: int
    tokens: bytes
    length: int
    text: str
    continuation: str
    document_id: str
    title: str
    uri: str
    offset: int
    licence: str
    def __init__(self, chunk_id: _Optional[int] = ..., tokens: _Optional[bytes] = ..., length: _Optional[int] = ..., text: _Optional[str] = ..., continuation: _Optional[str] = ..., document_id: _Optional[str] = ..., title: _Optional[str] = ..., uri: _Optional[str] = ..., offset: _Optional[int] = ..., licence: _Optional[str] = ...) -> None: ...

class PassagesRequest(_message.Message):
    __slots__ = ("database", "chunk_ids", "passage_len", "without_sources")
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_IDS_FIELD_NUMBER: _ClassVar[int]
    PASSAGE_LEN_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_SOURCES_FIELD_NUMBER: _ClassVar[int]
    database: DatabaseState
    chunk_ids: _containers.RepeatedScalarFieldContainer[int]
    passage_len: int
    without_sources: bool
    def __init__(self, database: _Optional[_Union[DatabaseState, _Mapping]] = ..., chunk_ids: _Optional[_Iterable[int]] = ..., passage_len: _Optional[int] = ..., without_sources: bool = ...) -> None: ...

class PassagesResponse(_message.Message):
    __slots__ = ("passages", "database")
    PASSAGES_FIELD_NUMBER: _ClassVar[int]
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    passages: _containers.RepeatedCompositeFieldContainer[Passage]
    database: DatabaseState
    def __init__(self, passages: _Optional[_Iterable[_Union[Passage, _Mapping]]] = ..., database: _Optional[_Union[DatabaseState, _Mapping]] = ...) -> None: ...

class ShardSearchRequest(_message.Message):
    __slots__ = ("database", "shard", "num_shards", "vectors", "k", "exclude_documents")
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    NUM_SHARDS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    database: DatabaseState
    shard: int
    num_shards: int
    vectors: Vectors
    k: int
    exclude_documents: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, database: _Optional[_Union[DatabaseState, _Mapping]] = ..., shard: _Optional[int] = ..., num_shards: _Optional[int] = ..., vectors: _Optional[_Union[Vectors, _Mapping]] = ..., k: _Optional[int] = ..., exclude_documents: _Optional[_Iterable[str]] = ...) -> None: ...

class ShardSearchResponse(_message.Message):
    __slots__ = ("chunk_ids", "distances")
    CHUNK_IDS_FIELD_NUMBER: _ClassVar[int]
    DISTANCES_FIELD_NUMBER: _ClassVar[int]
    chunk_ids: bytes
    distances: bytes
    def __init__(self, chunk_ids: _Optional[bytes] = ..., distances: _Optional[bytes] = ...) -> None: ...

class HoldRequest(_message.Message):
    __slots__ = ("databases", "hold_s", "holder", "leads")
    DATABASES_FIELD_NUMBER: _ClassVar[int]
    HOLD_S_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    LEADS_FIELD_NUMBER: _ClassVar[int]
    databases: _containers.RepeatedCompositeFieldContainer[DatabaseState]
    hold_s: float
    holder: str
    leads: bool
    def __init__(self, databases: _Optional[_Iterable[_Union[DatabaseState, _Mapping]]] = ..., hold_s: _Optional[float] = ..., holder: _Optional[str] = ..., leads: bool = ...) -> None: ...

class HoldResponse(_message.Message):
    __slots__ = ("databases", "next")
    DATABASES_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    databases: _containers.RepeatedCompositeFieldContainer[DatabaseState]
    next: DatabaseState
    def __init__(self, databases: _Optional[_Iterable[_Union[DatabaseState, _Mapping]]] = ..., next: _Optional[_Union[DatabaseState, _Mapping]] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Description(_message.Message):
    __slots__ = ("database", "chunk_len", "width", "tokenizer_fingerprint", "embedder_fingerprint", "num_shards", "vocab_size")
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_LEN_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    NUM_SHARDS_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    database: DatabaseState
    chunk_len: int
    width: int
    tokenizer_fingerprint: str
    embedder_fingerprint: str
    num_shards: int
    vocab_size: int
    def __init__(self, database: _Optional[_Union[DatabaseState, _Mapping]] = ..., chunk_len: _Optional[int] = ..., width: _Optional[int] = ..., tokenizer_fingerprint: _Optional[str] = ..., embedder_fingerprint: _Optional[str] = ..., num_shards: _Optional[int] = ..., vocab_size: _Optional[int] = ...) -> None: ...

class TokenizerRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TokenizerModel(_message.Message):
    __slots__ = ("model", "fingerprint")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    model: bytes
    fingerprint: str
    def __init__(self, model: _Optional[bytes] = ..., fingerprint: _Optional[str] = ...) -> None: ...
