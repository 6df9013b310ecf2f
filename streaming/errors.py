"""Errors that a user can act on. Everything else is a bug and keeps its traceback."""


class UserError(Exception):
    """Bad input. The message says what is wrong, where, what is allowed, and how to mend it.

    The command line prints it without a traceback and exits with status 2.
    """


class ConfigError(UserError):
    """A configuration file that does not say what its component needs."""


class DataError(UserError):
    """A data set that breaks the format: names file, row, column and remedy."""


class LeakageError(UserError):
    """An operation that would let a model see the future (laws L1 to L6 in docs/design.md)."""
