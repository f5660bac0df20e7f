"""Errors for what a user can mend, whose messages say how."""


class UserError(ValueError):
    """A setting, a file or a folder is not as it must be.

    The message names what was expected, what came and what to do, so that programs
    print it without a traceback.
    """


class DivergedError(UserError):
    """Training has reached a loss, gradient or measurement that is not finite.

    Attributes:
        step: The last step whose state was finite.
    """

    def __init__(self, message: str, step: int) -> None:
        """A message for the user, and the step.

        Args:
            message: As of every `UserError`.
            step: The last step whose state was finite.
        """
        # Copies for other processes are made from these two.
        super().__init__(message, step)
        self.step = step

    def __str__(self) -> str:
        """The message alone."""
        return self.args[0]
