"""The token of the moment: as configured, or from a file that is read again when it changes."""

from collections.abc import Callable
from threading import Lock

from exporter.config import Modus
from exporter.scalars import TOKEN
from exporter.watch import Watched


class TokenError(Exception):
    """A token file that gives no token; the text is one line that names the file."""


def token_source(modus: Modus) -> Callable[[], str]:
    """A function that gives the token of the moment, for any thread.

    A token file is read again when it changes, symlink swaps included. The function raises TokenError while
    the file is missing, unreadable or without a token; an earlier token is not used then.
    """
    path = modus.token_file
    if path is None:
        given = modus.token or ""
        return lambda: given
    file, lock, token = Watched(), Lock(), ""

    def read() -> str:
        nonlocal token
        with lock:
            if not token or file.changed():
                token = ""
                token = _read_token(file, path)
            return token

    return read


def _read_token(file: Watched, path: str) -> str:
    try:
        token = file.read(path, 8192).decode("ascii", "replace").strip()
    except OSError as error:
        raise TokenError(f"cannot read the token file {path}: {error.strerror}") from None
    if not TOKEN.fullmatch(token):
        reason = "it holds no token (one line of printable ASCII)" if token else "it is empty"
        raise TokenError(f"cannot read the token file {path}: {reason}") from None
    return token
