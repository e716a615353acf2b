"""Reads the bodies of answers: each bounded, and all that are read at one time together."""

import http.client
import threading
from typing import Any

from exporter.deadline import Deadline
from exporter.modus.errors import BodyTooLargeError
from exporter.modus.pacing import SLICE

PIECE = 65536  # bytes read at once; a body of one piece needs no leave
LARGE = 6  # bodies of more than one piece that may be in memory at one time
LARGEST = 8 << 20  # bytes, unpacked


def allowed(page_size: int) -> int:
    """Bytes that a page of so many items may take: 128 KiB for each and a megabyte, 8 MiB at most."""
    return min(LARGEST, (1 << 20) + page_size * (128 << 10))


class Bodies:
    """Lets few large bodies be in memory at one time: 48 MiB for all, and 64 KiB for each that is small."""

    def __init__(self) -> None:
        self._large = threading.BoundedSemaphore(LARGE)

    def room(self) -> "Room":
        """Room for one body; to be left when its bytes are needed no more."""
        return Room(self._large)


class Room:
    """What one body may take."""

    def __init__(self, large: threading.BoundedSemaphore) -> None:
        self._large = large
        self._entered = False

    def read(self, response: Any, most: int, deadline: Deadline) -> bytes:
        """The body, unpacked. Raises BodyTooLargeError beyond `most` bytes, and TimeoutError."""
        pieces: list[bytes] = []
        size = 0
        while True:
            if size >= PIECE and not self._entered:
                self._enter(deadline)
            piece = response.read(PIECE, decode_content=True)
            if not piece:
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.append(piece)
            size += len(piece)
            if size > most:
                error = BodyTooLargeError if response.status == 200 else http.client.HTTPException
                raise error(f"a body of more than {most} bytes")

    def leave(self) -> None:
        """Let others in; the bytes are gone."""
        if self._entered:
            self._entered = False
            self._large.release()

    def _enter(self, deadline: Deadline) -> None:
        while not self._large.acquire(timeout=min(SLICE, deadline.left())):
            if deadline.passed():
                raise TimeoutError
        self._entered = True
