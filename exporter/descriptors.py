"""File descriptors: how many the system allows, and how many of them are for the API."""

import resource
from contextlib import suppress

OTHERS = 16  # those of the state, of listeners, of what is asked beside the scrapes, of files that are read


def take_all() -> None:
    """Take as many as the system grants, as a program in Go does by itself."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS names more than it grants
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def for_the_api(wanted: int) -> int:
    """How many requests may be under way, of those wanted, where clients may have a quarter of all."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if allowed < 0 else min(wanted, max(1, allowed - allowed // 4 - OTHERS))
