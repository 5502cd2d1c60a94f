"""The one exception that a user is meant to see as words and not as a traceback."""


def named(error: BaseException) -> str:
    """Return an error's kind and text."""
    return f"{type(error).__name__}: {error}"


class InputError(Exception):
    """What the user asked for cannot be done; each argument is one line for the terminal.

    A line says what was got, what is allowed, and what to type instead.
    """

    def __str__(self) -> str:
        return "\n".join(self.args)
