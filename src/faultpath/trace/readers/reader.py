"""What every format's reader gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from faultpath.trace.formats import Progress
from faultpath.trace.schema import Columns, TraceMeta


class Reader(Protocol):
    """An open recording, made from its path.

    Making one and reading it raise ``FaultpathError`` when the file cannot be decoded.
    """

    def rows(self, progress: Progress | None = None) -> Iterator[Columns]:
        """Rows of the trace in time order, a bounded piece at a time; a piece is not changed after it was given.

        :param progress: called with bytes done and bytes in all
        """

    def meta(self) -> TraceMeta:
        """What the trace says about itself; complete when ``rows`` has run to its end."""
