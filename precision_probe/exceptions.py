"""The errors a user can cause or meet; the command line turns each into its exit code."""


class ProbeError(Exception):
    """Base of every error that precision_probe raises on purpose.

    The message is one short paragraph: what, what was got, what is allowed, what to do.
    """


class InputError(ProbeError, ValueError):
    """A model, a structure, an option or a file that cannot be used."""


def first_line(error: Exception) -> str:
    """What another library's error says, short enough for one sentence of ours: 120 characters of its first line."""
    return (str(error).strip().splitlines() or [""])[0][:120]


def printable(text: object) -> str:
    r"""Text that came from a file or a user, as it can be shown: what a terminal would obey is escaped.

    Control characters (``\x1b`` begins the sequences that move a cursor or rename a window), line ends, marks that
    turn the direction of writing and lone surrogates are written as Python writes them in a string.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))
