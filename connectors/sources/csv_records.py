"""Where records of delimited text begin and end: a value in quotes may hold the delimiter, quotes in pairs and line ends.

As in Arrow's parser, a quote opens a value only at its first character. One that is not closed, or whose closing quote on a
later line is followed by anything but a delimiter or a line end, is a mistake in its own line; reading goes on behind it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

__all__ = ["Record", "Records"]

Record = tuple[int, int, str | None]
"""Start, end without the line end, what is wrong with it."""

_COMMENT = "comment"
_UNCLOSED = "a quote is opened and not closed"
_LINE = re.compile(rb"[^\r\n]+")
_LINE_END = re.compile(rb"\r\n|\n|\r")


class Records:
    """Finds the records of blocks of text."""

    def __init__(self, delimiter: str, comment: str | None = None) -> None:
        self._delimiter = delimiter.encode()
        self._comment = comment.encode() if comment else None
        d = re.escape(self._delimiter)
        # Possessive throughout: no text makes the search go back.
        same_line = rb'"[^"\r\n]*+(?:""[^"\r\n]*+)*+"[^%b\r\n]*+' % d
        text = rb'[^"%b\r\n][^%b\r\n]*+' % (d, d)
        quoted = rb'"[^"]*+(?:""[^"]*+)*+"'
        within = rb"(?:%b|%b(?=[%b\r\n])|%b|)" % (same_line, quoted, d, text)
        at_end = rb"(?:%b|%b(?=[%b\r\n]|\Z)|%b|)" % (same_line, quoted, d, text)
        self._whole = re.compile(rb"%b(?:%b%b)*+(?=[\r\n])" % (within, d, within))
        self._last = re.compile(rb"%b(?:%b%b)*+(?=[\r\n]|\Z)" % (at_end, d, at_end))
        self._values = re.compile(rb"(?:%b%b)*+" % (within, d))
        self._open = re.compile(rb'"[^"]*+(?:""[^"]*+)*+"?\Z')
        self._value = re.compile(rb'(?:"([^"]*+(?:""[^"]*+)*+)"([^%b\r\n]*+)|([^%b\r\n]*+))(?:%b|(\Z))' % (d, d, d))

    def lines_are_records(self, block: bytes) -> bool:
        """Return whether every line of ``block`` that is not blank is a record and no comment. Never wrongly true."""
        comment = self._comment
        if comment and (block.startswith(comment) or b"\n" + comment in block or b"\r" + comment in block):
            return False
        if b'"' not in block:
            return True
        data = np.frombuffer(block, np.uint8)
        quotes = np.flatnonzero(data == ord('"'))
        line = np.searchsorted(np.flatnonzero((data == ord("\n")) | (data == ord("\r"))), quotes)
        first = np.concatenate([[True], line[1:] != line[:-1]])  # of its line
        index = np.arange(len(quotes))
        rank = index - index[first][np.cumsum(first) - 1]
        opens = rank % 2 == 0
        if opens[np.append(first[1:], True)].any():
            return False  # an odd number on a line
        before = np.where(quotes[opens] > 0, data[quotes[opens] - 1], ord("\n"))
        fine = np.isin(before, np.frombuffer(b"\r\n" + self._delimiter, np.uint8)) | ((before == ord('"')) & (rank[opens] > 0))
        return bool(fine.all())

    def split(self, block: bytes) -> Iterator[Record]:
        """Yield the records of ``block``, which ends with a whole one; no blank lines, no comments."""
        if self.lines_are_records(block):
            for line in _LINE.finditer(block):
                yield line.start(), line.end(), None
            return
        for start, stop, _, problem in self._spans(block, closed=True, final=True):
            if problem != _COMMENT:
                yield start, stop, problem

    def end(self, block: bytes, *, closed: bool) -> int:
        """Return the end of the last record of ``block`` that is whole with its line end; 0 if none is.

        ``closed``: a quote that is not closed within ``block`` never is.
        """
        last = max(block.rfind(b"\n"), block.rfind(b"\r")) + 1
        if last and self.lines_are_records(block[:last]):
            return last
        end = 0
        for _, _, after, _ in self._spans(block, closed=closed, final=False):
            end = after
        return end

    def values(self, record: bytes) -> list[str]:
        """Return the values of one record."""
        values, at = [], 0
        while found := self._value.match(record, at):
            quoted, rest, plain, stop = found.groups()
            text = plain if quoted is None else quoted.replace(b'""', b'"') + rest
            values.append(text.decode(errors="replace"))
            if stop is not None:
                break
            at = found.end()
        return values

    def oddities(self, block: bytes) -> int:
        """Count what is rare where a block is cut into records rightly: open quotes, and quotes within plain values."""
        found = 0
        for start, stop, problem in self.split(block):
            found += problem is not None
            at = start
            while (value := self._value.match(block, at, stop)) and value[4] is None:
                found += value[3] is not None and b'"' in value[3]
                at = value.end()
        return found

    def _spans(self, block: bytes, *, closed: bool, final: bool) -> Iterator[tuple[int, int, int, str | None]]:
        """Yield start, end, start of the next and problem of records and comments; those without a line end if ``final``."""
        at = 0
        pattern = self._last if final else self._whole
        while at < len(block):
            problem = None
            if self._comment and block.startswith(self._comment, at):
                end, problem = _line_end(block, at), _COMMENT
            elif (found := pattern.match(block, at)) is not None:
                end = found.end()
            else:
                opening = self._values.match(block, at)
                if not closed and opening and self._open.match(block, opening.end()):
                    return
                end, problem = _line_end(block, at), _UNCLOSED
            if end == len(block) and not final:
                return
            line_end = _LINE_END.match(block, end)
            after = line_end.end() if line_end else end
            if end > at:
                yield at, end, after, problem
            at = after


def _line_end(block: bytes, at: int) -> int:
    found = _LINE_END.search(block, at)
    return found.start() if found else len(block)
