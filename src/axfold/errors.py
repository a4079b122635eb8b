"""Errors that a user can act on. Their messages say what is wrong, where, and what to do."""


class AxfoldError(Exception):
    """Ends a command with `exit_code` and its message, without a traceback."""

    exit_code = 1


class InputError(AxfoldError):
    """The input or the request is at fault; found before any work starts."""

    exit_code = 2


class WeightsError(AxfoldError):
    """A parameter file is missing, damaged, or of another model."""

    exit_code = 2
