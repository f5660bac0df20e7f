"""Errors that a user can fix; their messages say how."""


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
