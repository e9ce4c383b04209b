"""The methods of a gRPC service as functions, made from the description in `retrieval.proto`."""

from types import SimpleNamespace

from google.protobuf.message_factory import GetMessageClass

from data_pipeline.service.wire import retrieval_pb2 as pb


def stub_of(channel, service: str) -> SimpleNamespace:
    """Makes the methods of a service by name; each takes a request and gives the answer.

    Args:
        channel: a gRPC channel, or one of `grpc.aio`, whose methods are to be awaited.
        service: Retrieval or Shard.
    Raises:
        KeyError: for another service.
    """
    described = pb.DESCRIPTOR.services_by_name[service]
    return SimpleNamespace(
        **{
            method.name: channel.unary_unary(
                f"/{described.full_name}/{method.name}",
                request_serializer=GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            for method in described.methods
        }
    )
