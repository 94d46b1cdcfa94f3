"""The one error a user meets: what is wrong, where, and how to mend it."""

from __future__ import annotations


class FaultpathError(Exception):
    """A wrong request or input.

    The command line prints it as ``faultpath: WHAT: WHERE: MEND`` on one line and exits with status 2.

    :param what: what is wrong, with the value and the rule it breaks
    :param where: the file, offset, event or option it was found in
    :param mend: what the user can do about it
    """

    def __init__(self, what: str, where: str, mend: str) -> None:
        super().__init__(f"{what}: {where}: {mend}")
        self.what = what
        self.where = where
        self.mend = mend

    def __str__(self) -> str:
        # One line whatever a hostile file name holds.
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in super().__str__())
