"""The one exception for bad input: the command line prints its single line and exits with status 2."""


class InputError(ValueError):
    """A value given by the user is unusable; the message is one line: which value, what is allowed, what to do."""
