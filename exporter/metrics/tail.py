"""What follows the reading, text and gzip: timed, so that the scrapes to come keep that time free."""

FIRST = 0.0002  # seconds that an agent costs, until that was timed
SPARE = 1.5  # times what was measured that is kept free


class Tail:
    """The newest few timings, per agent."""

    def __init__(self) -> None:
        self._newest: tuple[float, ...] = ()  # seconds

    def note(self, seconds: float, agents: int) -> None:
        """Note how long it took until the text of so many agents was written."""
        if agents:
            self._newest = (*self._newest[-4:], seconds / agents)

    def seconds(self, agents: int) -> float:
        """How many to keep free for so many agents."""
        return max(self._newest, default=FIRST) * agents * SPARE
