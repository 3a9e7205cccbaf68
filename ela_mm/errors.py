"""The error for what a user can put right, and how tools end."""

# What a shell expects of a process that Ctrl-C has ended: 128 + SIGINT.
INTERRUPTED = 130


class UsageError(ValueError):
    """Bad input, with a message that says what was expected and the way out.

    The tools end with its message alone, without a traceback.
    """
