"""Whether the API answers, as of the newest call."""

from typing import NamedTuple

from exporter.modus.errors import ApiError


class Contact(NamedTuple):
    """What came of the calls so far."""

    answered: float | None = (
        None  # when the newest answer came, Unix seconds of our clock; None: there was none
    )
    problem: str = ""  # why the newest call brought no answer, or its token was refused: one line

    def after(self, error: ApiError, now: float) -> "Contact":
        """What is known when a call has ended in an error."""
        refused = error.reason == "unauthorized" or not error.answered
        return Contact(now if error.answered else self.answered, error.line if refused else "")

    def said(self, now: float) -> str:
        """It in a sentence or two, for people."""
        if self.answered is None:
            return (
                f"The API has not answered yet: {self.problem}."
                if self.problem
                else "The API has not been asked yet."
            )
        text = f"The API answered {age(now - self.answered)} ago."
        return f"{text} Now: {self.problem}." if self.problem else text


def age(seconds: float) -> str:
    """A time that has passed, in its largest unit."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
