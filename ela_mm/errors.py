"""The error for what a user can put right."""


class UsageError(ValueError):
    """Bad input, with a message that says what was expected and the way out.

    The tools end with its message alone, without a traceback.
    """
