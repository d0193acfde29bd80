"""The one exception that means: a person can mend this."""


class UserError(ValueError):
    """Bad input. The message is one line that names the setting, its value and the fix.

    The command line prints it without a traceback and exits with status 2.
    """
