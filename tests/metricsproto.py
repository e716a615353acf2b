"""What metrics.proto of prometheus/client_model says, for the official runtime to read by."""

from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from google.protobuf.unknown_fields import UnknownFieldSet

# message: field: (number, type); a type in capitals is a message, one with * is repeated
MODEL = {
    "LabelPair": {"name": (1, "string"), "value": (2, "string")},
    "Gauge": {"value": (1, "double")},
    "Counter": {
        "value": (1, "double"),
        "exemplar": (2, "Exemplar"),
        "created_timestamp": (3, "Timestamp"),
    },
    "Quantile": {"quantile": (1, "double"), "value": (2, "double")},
    "Summary": {
        "sample_count": (1, "uint64"),
        "sample_sum": (2, "double"),
        "quantile": (3, "Quantile*"),
        "created_timestamp": (4, "Timestamp"),
    },
    "Untyped": {"value": (1, "double")},
    "Histogram": {
        "sample_count": (1, "uint64"),
        "sample_count_float": (4, "double"),
        "sample_sum": (2, "double"),
        "bucket": (3, "Bucket*"),
        "created_timestamp": (15, "Timestamp"),
        "schema": (5, "sint32"),
        "zero_threshold": (6, "double"),
        "zero_count": (7, "uint64"),
        "zero_count_float": (8, "double"),
        "negative_span": (9, "BucketSpan*"),
        "negative_delta": (10, "sint64*"),
        "negative_count": (11, "double*"),
        "positive_span": (12, "BucketSpan*"),
        "positive_delta": (13, "sint64*"),
        "positive_count": (14, "double*"),
        "exemplars": (16, "Exemplar*"),
    },
    "Bucket": {
        "cumulative_count": (1, "uint64"),
        "cumulative_count_float": (4, "double"),
        "upper_bound": (2, "double"),
        "exemplar": (3, "Exemplar"),
    },
    "BucketSpan": {"offset": (1, "sint32"), "length": (2, "uint32")},
    "Exemplar": {"label": (1, "LabelPair*"), "value": (2, "double"), "timestamp": (3, "Timestamp")},
    "Metric": {
        "label": (1, "LabelPair*"),
        "gauge": (2, "Gauge"),
        "counter": (3, "Counter"),
        "summary": (4, "Summary"),
        "untyped": (5, "Untyped"),
        "histogram": (7, "Histogram"),
        "timestamp_ms": (6, "int64"),
    },
    "MetricFamily": {
        "name": (1, "string"),
        "help": (2, "string"),
        "type": (3, "MetricType"),
        "metric": (4, "Metric*"),
        "unit": (5, "string"),
    },
}
TYPES = ("COUNTER", "GAUGE", "SUMMARY", "UNTYPED", "HISTOGRAM", "GAUGE_HISTOGRAM")


def _file() -> descriptor_pb2.FileDescriptorProto:
    package = "io.prometheus.client"
    file = descriptor_pb2.FileDescriptorProto(
        name="metrics.proto", package=package, syntax="proto2", dependency=[timestamp_pb2.DESCRIPTOR.name]
    )
    enum = file.enum_type.add(name="MetricType")
    for number, name in enumerate(TYPES):
        enum.value.add(name=name, number=number)
    kind = descriptor_pb2.FieldDescriptorProto
    for message, fields in MODEL.items():
        described = file.message_type.add(name=message)
        for name, (number, type_) in fields.items():
            label = kind.LABEL_REPEATED if type_.endswith("*") else kind.LABEL_OPTIONAL
            field = described.field.add(name=name, number=number, label=label)
            match type_.removesuffix("*"):
                case "Timestamp":
                    field.type, field.type_name = kind.TYPE_MESSAGE, ".google.protobuf.Timestamp"
                case "MetricType":
                    field.type, field.type_name = kind.TYPE_ENUM, f".{package}.MetricType"
                case other if other in MODEL:
                    field.type, field.type_name = kind.TYPE_MESSAGE, f".{package}.{other}"
                case other:
                    field.type = kind.Type.Value(f"TYPE_{other.upper()}")
    return file


_POOL = descriptor_pool.DescriptorPool()
_POOL.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
_POOL.Add(_file())
MetricFamily: Any = message_factory.GetMessageClass(
    _POOL.FindMessageTypeByName("io.prometheus.client.MetricFamily")
)


def families(exposition: bytes) -> Iterator[Any]:
    """The messages of an exposition. Raises DecodeError, and AssertionError for what nobody described."""
    at = 0
    while at < len(exposition):
        size = shift = 0
        while True:
            octet, at = exposition[at], at + 1
            size |= (octet & 127) << shift
            shift += 7
            if octet < 128:
                break
        family = MetricFamily.FromString(exposition[at : at + size])
        assert at + size <= len(exposition)
        assert not _unknown(family), family
        yield family
        at += size


def _unknown(message: Any) -> bool:
    if len(UnknownFieldSet(message)):
        return True
    parts = [value for field, value in message.ListFields() if field.message_type]
    parts = [each for part in parts for each in (part if hasattr(part, "append") else [part])]
    return any(map(_unknown, parts))


def native_buckets(histogram: Any) -> dict[int, int]:
    """The buckets that spans and deltas tell of, without the empty ones."""
    buckets, bucket, n, deltas = {}, 0, 0, iter(histogram.positive_delta)
    for span in histogram.positive_span:
        bucket += span.offset
        for _ in range(span.length):
            n += next(deltas)
            buckets[bucket] = n
            bucket += 1
    assert next(deltas, None) is None
    return {bucket: n for bucket, n in buckets.items() if n}
