"""Errors that users can put right, checks of options, and the end of a process."""
import contextlib
import logging
import numbers
import os
import select
import sys
from typing import Any, Iterator

# Exit status that a shell expects after Ctrl-C: 128 + SIGINT.
INTERRUPTED = 130
# Exit status that it expects if nobody reads the output any more: 128 + SIGPIPE.
UNREAD = 141


class UsageError(ValueError):
    """Bad input, with a message that says what was expected and the way out.

    The tools end with its message alone, without a traceback.
    """


def check_numbers(whole: bool = False, **values: Any) -> None:
    """Check that options are numbers, before they are compared with others.

    Args:
        whole (bool): Whether they have to be integers. Defaults to False.
        **values: Options by name. True and False do not count as numbers.

    Raises:
        UsageError: On the first that is not a number.
    """
    kind = numbers.Integral if whole else numbers.Real
    for name, value in values.items():
        if isinstance(value, kind) and not isinstance(value, bool):
            continue
        message = f'{name}={value!r}: expected a {"whole " * whole}number'
        if isinstance(value, str):
            message += ' without quotes; YAML needs a dot in it, as in 1.0e-4'
        raise UsageError(message)


@contextlib.contextmanager
def while_read() -> Iterator[None]:
    """End the process quietly once nobody reads its output any more.

    ``head``, for example, closes a pipe when it has its lines. Other programs
    are killed by SIGPIPE. Python ignores it, rightly: a broken socket of a
    training is an error. Logging continues, so that a training whose terminal
    is gone still has its log file.

    Raises:
        SystemExit: With the status that a shell shows for SIGPIPE.
    """
    handle = logging.StreamHandler.handleError
    logging.StreamHandler.handleError = _handle_error
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        if not _is_unread():
            raise
        sys.exit(UNREAD)
    finally:
        logging.StreamHandler.handleError = handle
        if _is_unread():  # Python flushes once more when it ends
            _write_nowhere()


def _handle_error(self: logging.StreamHandler,
                  record: logging.LogRecord) -> None:
    """Discard all further output if nobody reads it, without an error per line."""
    if isinstance(sys.exc_info()[1], BrokenPipeError) and _is_unread():
        _write_nowhere()
    else:
        logging.Handler.handleError(self, record)


def _write_nowhere() -> None:
    with open(os.devnull, 'wb') as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _is_unread() -> bool:
    """Return whether standard output is a pipe whose reader has closed it."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)  # 0: only errors are reported
        return any(event & (select.POLLERR | select.POLLHUP)
                   for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # Windows; a notebook's output
        return False
