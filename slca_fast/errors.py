"""The kinds of trouble that are not bugs; the command line turns each into one line and an exit code."""


class UserError(ValueError):
    """An option, a file named by an option, or a combination of them cannot be used (exit code 2)."""


class DataError(ValueError):
    """The data set on disk cannot be used (exit code 3)."""


class RankLost(RuntimeError):
    """Another rank has ended; its own message says why (exit code 1)."""
