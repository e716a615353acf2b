"""How the ids of counted runs are kept, and how their rows are known to be what was written."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from zlib import crc32

TIMELESS = 90 * 86400.0  # seconds that the id of what names no time is kept
MALFORMED = "malformed "  # before what names an item that could not be decoded, among the ids
END = b"\xff"  # behind each id in memory: no byte of UTF-8
HASH = 2**32 - 1  # the part of a hash that is kept


class CountedIds(Mapping[str, float]):
    """An agent's counted runs: when each was over, by its id, in less than half the memory of a dict.

    The ids are one row of bytes, in the order in which they came. Where each begins there, and when its run
    was over, is in arrays sorted by the hashes of the ids. A hash only says where to look: ids are compared.
    """

    __slots__ = ("_hashes", "_ids", "_overs", "_starts")

    def __init__(self, items: Iterable[tuple[str, float]] = ()) -> None:
        self._ids = bytearray()
        self._hashes, self._overs, self._starts = array("I"), array("d"), array("I")
        for id_, over in items:
            self.add(id_, over)

    def __contains__(self, id_: object) -> bool:  # noqa: D105 - as every mapping has it
        return isinstance(id_, str) and self._find(id_) >= 0

    def __getitem__(self, id_: str) -> float:  # noqa: D105
        if (at := self._find(id_)) < 0:
            raise KeyError(id_)
        return self._overs[at]

    def __iter__(self) -> Iterator[str]:  # noqa: D105
        for start in self._starts:
            yield self._ids[start : self._ids.index(END, start)].decode("utf-8", "surrogatepass")

    def __len__(self) -> int:  # noqa: D105
        return len(self._hashes)

    def add(self, id_: str, over: float) -> None:
        """Add a run that is not there yet."""
        key = hash(id_) & HASH
        at = bisect_left(self._hashes, key)
        self._hashes.insert(at, key)
        self._overs.insert(at, over)
        self._starts.insert(at, len(self._ids))
        self._ids += _packed(id_)

    def remove_older(self, instant: float) -> list[tuple[str, float]]:
        """Remove the runs that were over before that instant; returns them."""
        if min(self._overs, default=instant) >= instant:
            return []
        items = list(zip(self, self._overs, strict=True))
        kept = CountedIds(item for item in items if item[1] >= instant)
        for name in self.__slots__:
            setattr(self, name, getattr(kept, name))
        return [item for item in items if item[1] < instant]

    def _find(self, id_: str) -> int:
        """Its place in the arrays, or -1."""
        key, hashes = hash(id_) & HASH, self._hashes
        at = bisect_left(hashes, key)
        while at < len(hashes) and hashes[at] == key:
            if self._ids.startswith(_packed(id_), self._starts[at]):
                return at
            at += 1
        return -1


def _packed(id_: str) -> bytes:
    return id_.encode("utf-8", "surrogatepass") + END


def add_checksum(total: int, id_: str, over: float, sign: int = 1) -> int:
    """The sum over an agent's counted ids with this row added (or taken away, with -1)."""
    return (total + sign * crc32(f"{id_} {over!r}".encode())) % 2**53
