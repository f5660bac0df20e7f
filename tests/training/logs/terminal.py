"""A terminal for tests."""

import io


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    @property
    def bars(self) -> list[str]:
        """Everything that was on the bar's line, and is not empty."""
        return [line for line in self.getvalue().split("\r") if line.strip()]
