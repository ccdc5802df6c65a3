"""What is printed reaches the terminal, whatever it can show: under a C locale in ASCII."""

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
"""Characters that the program prints, for terminals that know only ASCII."""
HANDLER = "fedlora_sim.ascii"


def print_anywhere() -> None:
    """Let standard output and error print any text: what they cannot encode, in another form."""
    codecs.register_error(HANDLER, _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=HANDLER)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """The form of the characters that an encoding lacks, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(map(_ascii, text)), error.end


def _ascii(character: str) -> str:
    """One character: its own form, its letter without the accent, or as Python writes it."""
    if character in ASCII_FORMS:
        return ASCII_FORMS[character]
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain or character.encode("ascii", "backslashreplace").decode()
