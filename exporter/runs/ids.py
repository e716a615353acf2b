"""How the ids of counted runs are kept, and how their rows are known to be what was written."""

from zlib import crc32

TIMELESS = 90 * 86400.0  # seconds that the id of what names no time is kept
MALFORMED = "malformed "  # before what names an item that could not be decoded, among the ids


def add_checksum(total: int, id_: str, over: float, sign: int = 1) -> int:
    """The sum over an agent's counted ids with this row added (or taken away, with -1)."""
    return (total + sign * crc32(f"{id_} {over!r}".encode())) % 2**53
