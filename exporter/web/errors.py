"""Why the web server cannot start."""


class WebError(Exception):
    """Why the web server cannot start, in one line; `exit_code` is 2 for a mistake of use, else 1."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code
