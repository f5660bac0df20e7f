"""Errors that a user can fix; their messages say how."""

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """Error about a setting, a file or a folder that the user can fix.

    The message states what was expected, what came and what to do. Programs therefore
    print it without a traceback.
    """


class DivergedError(UserError):
    """Error about a loss, a gradient or an evaluation result that is not finite.

    Attributes:
        step: The last step whose state was finite.
    """

    def __init__(self, message: str, step: int) -> None:
        """Stores the message and the step.

        Args:
            message: Text for the user.
            step: The last step whose state was finite.
        """
        # Pickle passes these two arguments when another process receives the error.
        super().__init__(message, step)
        self.step = step

    def __str__(self) -> str:
        """Returns the message without the step."""
        return self.args[0]


def unknown_name_message(what: str, name: str, known: Iterable[str]) -> str:
    """Returns a message about a name that is unknown, with the nearest known one.

    Args:
        what: Setting that holds the name, or a description of the names.
        name: The unknown name.
        known: The known names; Flax's `parent` and `name` are left out.
    """
    known = [candidate for candidate in known if candidate not in ("parent", "name")]
    end = did_you_mean(name, known)
    return f"{what} must be one of {', '.join(known)}, but is {name!r}{end}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the end of a message about an unknown name: the nearest known one.

    Args:
        name: The unknown name.
        known: The known names.

    >>> did_you_mean("momemtum", ["momentum", "epsilon"]), did_you_mean("x", ["y"])
    ("; did you mean 'momentum'?", '.')
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


def shorten(items: Sequence[object], *, most: int = 5, separator: str = ", ") -> str:
    """Returns the first few items, and the number of the others.

    Args:
        items: The items.
        most: Number of items that are named.
        separator: Text between two items.

    >>> shorten(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return separator.join(map(str, items[:most])) + more
