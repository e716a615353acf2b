"""Basic auth by bcrypt hashes that strangers can neither exhaust nor ask for names."""

import asyncio
import base64
import hashlib
import secrets
from collections import Counter, OrderedDict
from collections.abc import Mapping

import bcrypt

from exporter.web.executor import BoundedExecutor
from exporter.web.messages import too_busy

REFUSAL_SECONDS = (
    0.3  # at least, for a name and a password that do not match: hides what a hash up to cost 12 costs
)
MAX_ALIKE = 4  # comparisons for one name that one client address has under way or waiting
MAX_REMEMBERED = 1024  # credentials that were compared, good and bad
MAX_PASSWORD_BYTES = 72  # bcrypt takes no more
_DECOY = (
    b"$2b$10$" + b"." * 53
)  # what an unknown user's password is compared with: the cost that we recommend


class BasicAuth:
    """Users and their bcrypt hashes; for `Logins`, which has the threads."""

    def __init__(self, users: Mapping[str, str]) -> None:
        self._hashes = {name.encode(): value.encode() for name, value in users.items()}
        self._salt = secrets.token_bytes(32)
        self._compared: OrderedDict[bytes, bool] = (
            OrderedDict()
        )  # by digest, the one asked for last at the end

    def names(self, credentials: bytes) -> bool:
        """Whether there is a user of this name."""
        return credentials.partition(b":")[0] in self._hashes

    def remembered(self, credentials: bytes) -> bool | None:
        """What `check` said of these credentials (`name:password`); None when it was not asked; quick."""
        digest = self._digest(credentials)
        if digest in self._compared:
            self._compared.move_to_end(digest)
        return self._compared.get(digest)

    def remember(self, credentials: bytes, good: bool) -> None:
        """Keep what `check` said, in place of the bad ones that were not asked for longest."""
        self._compared[self._digest(credentials)] = good
        while len(self._compared) > MAX_REMEMBERED:
            oldest = next((digest for digest, was_good in self._compared.items() if not was_good), None)
            self._compared.pop(oldest or next(iter(self._compared)))

    def check(self, credentials: bytes) -> bool:
        """Compare with bcrypt: slow by design, so call it in a thread."""
        name, _, password = credentials.partition(b":")
        if len(password) > MAX_PASSWORD_BYTES:
            return False
        return bcrypt.checkpw(password, self._hashes.get(name, _DECOY)) and name in self._hashes

    def _digest(self, credentials: bytes) -> bytes:
        return hashlib.blake2b(credentials, key=self._salt).digest()


class Logins:
    """Compares credentials, one of a known name and one of an unknown name at a time.

    Those who guess names wait for each other only, and who guesses the passwords of a name takes few places.
    Raises HTTPError (503) when too many wait.
    """

    def __init__(self) -> None:
        self._known = BoundedExecutor("login", threads=1, waiting=32)
        self._unknown = BoundedExecutor("stranger", threads=1, waiting=32)
        self._under_way: Counter[tuple[str, bytes]] = Counter()  # by client address and name

    async def good(self, auth: BasicAuth, authorization: str, client: str) -> bool:
        """Whether the header names a user and its password; a refusal takes REFUSAL_SECONDS at least."""
        scheme, _, encoded = authorization.partition(" ")
        try:
            credentials = base64.b64decode(encoded.strip(), validate=True)
        except ValueError:
            return False
        if scheme.lower() != "basic" or b":" not in credentials:
            return False
        loop = asyncio.get_running_loop()
        begun = loop.time()
        good = auth.remembered(credentials)
        if good is None:
            good = await self._compared(auth, credentials, client)
            auth.remember(credentials, good)
        if not good:
            await asyncio.sleep(begun + REFUSAL_SECONDS - loop.time())
        return good

    async def _compared(self, auth: BasicAuth, credentials: bytes, client: str) -> bool:
        alike = client, credentials.partition(b":")[0]
        if self._under_way[alike] >= MAX_ALIKE:
            raise too_busy()
        lane = self._known if auth.names(credentials) else self._unknown
        self._under_way[alike] += 1
        try:
            return await lane.run(lambda: auth.check(credentials))
        finally:
            self._under_way[alike] -= 1
            self._under_way += Counter()  # drops what is at 0
