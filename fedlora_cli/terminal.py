"""Print any text on any terminal, as ASCII under a C locale."""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata

ASCII_FORMS = {
    "×": "x",
    "·": "*",
    "±": "+/-",
    "−": "-",
    "–": "-",
    "—": "-",
    "≠": "!=",
    "∞": "inf",
    "’": "'",
    "✓": "yes",
    "✗": "no",
    "ρ": "rho",
}
"""Characters that the program prints, for terminals that support only ASCII."""
HANDLER = "fedlora_sim.ascii"


def print_anywhere() -> None:
    """Let standard output and error print any text, replacing what they cannot encode."""
    codecs.register_error(HANDLER, _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=HANDLER)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Return the replacement of characters that an encoding lacks, and where to continue."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(map(_ascii, text)), error.end


def _ascii(character: str) -> str:
    """Return one character: unchanged, its letter without the accent, or as a Python escape."""
    if character in ASCII_FORMS:
        return ASCII_FORMS[character]
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain or character.encode("ascii", "backslashreplace").decode()
