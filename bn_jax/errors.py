"""The error for what a user can mend, whose message says how."""


class UserError(ValueError):
    """A setting, a file or a folder is not as it must be.

    The message names what was expected, what came and what to do, so that programs
    print it without a traceback.
    """
