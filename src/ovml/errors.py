"""The one error that means: the input is at fault, and the message says what to do."""


class UserError(ValueError):
    """Bad input from the person at the keyboard: a file, a label list, a configuration.

    The message is one line that names what is wrong, where, and what to do. The command line prints it
    without a traceback and exits with 2; in Python it is an ordinary `ValueError`.
    """
