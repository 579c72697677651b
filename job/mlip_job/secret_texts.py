r"""Detect secrets in a text, a URL or an environment variable.

Settings with a secret are rejected, and messages are redacted. The chart's values.schema.json has
the same patterns (``make chart``), so they are kept to what Python's and Go's regular expressions
have in common: no look-around, no back references.

- User info of a URL: everything up to the *last* ``@``, for a password may hold an unescaped ``/``,
  ``?``, ``#``, ``:`` or ``@``. With a ``:`` in it there is a password. Without one it is a user's
  name, except for http, https and s3, where it is a token.
- Parameters in the query or the fragment of a URL, by their name. ``sslkey``, ``sslrootcert`` and
  ``passfile`` are names of files, and accepted.
- ``NAME=value``, ``--name value`` and ``"name": "value"`` in any text, by the name: connection
  strings of libpq, lines of shell, JSON. ``$NAME`` and ``$(command)`` are no values.
- Environment variables, by their name.
- Keys that are known by their form: of AWS, GitHub, GitLab, Slack; JSON web tokens; PEM.

The end of a name decides: ``DATABASE_PASSWORD`` is one, ``PASSWORD_FILE`` and ``secretName`` are
none.
"""

from __future__ import annotations

import os
import re
import unicodedata
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_WORDS = (
    "pass(?:word|wd|phrase|code)|secrets?|tokens?|credentials?|signature|authorization|"
    "(?:basic|http|proxy)[-_.]?auth|"
    "jwt|(?:access|account|api|auth|master|private|secret|shared|signing|storage)[-_.]?key"
)
_SHORT = "pass|pwd|pw|key|sig"
_END = "(?:[-_.]?(?:id|[0-9]+))?"
_NAME = "(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,60})?"
_LONG = f"(?i:{_NAME}(?:{_WORDS}){_END})"
_WHOLE = f"(?i:[A-Za-z0-9_.-]*(?:{_WORDS}){_END})"
_PARAMETER = f"(?:{_LONG}|(?i:(?:{_NAME}[-_.])?(?:pass|pwd|pw|sig)|key|auth))"
_SCHEME = "[A-Za-z][A-Za-z0-9+.-]{0,20}://"
_COLON = "(?::|%3[Aa])"
_IN_TEXT = r"""[^\s"'<>`]"""
# Behind the @ of an image's digest there is no host.
_HOST = "(?:$|[^s]|s[^h]|sh[^a]|sha[^2]|sha2[^5]|sha25[^6]|sha256[^:])"
# A value that stands there; not a variable or a command of the shell.
_LITERAL = r"(?:[^\s\"'$`,;&]|\$[^A-Z({])"

VARIABLE = f"^(?:{_WHOLE}|(?i:[A-Za-z0-9_.-]*[-_.](?:{_SHORT}){_END}))$"
"""Names of environment variables whose values are secret."""

KEY = f"^{_WHOLE}$"
"""Names of keys of a mapping whose texts are secret; ``key`` itself is none, in Kubernetes."""

NOT_SECRET = ("GOOGLE_APPLICATION_CREDENTIALS",)
"""Variables that look secret, but name a file."""

TEXTS: Mapping[str, str] = {
    "password in a URL": (
        rf"(?s:^\s*(?:{_SCHEME}|//).*{_COLON}.+@{_HOST})"
        rf"|{_SCHEME}{_IN_TEXT}*{_COLON}{_IN_TEXT}+@{_HOST}"
        r"|^[^\s:/@]+:[^\s@/][^\s@]*@[^\s@:/]+(?::[0-9]{1,5}(?:/|$)|/)"
    ),
    "token in a URL": r"""(?i:https?|s3)://[^\s/?#"'<>@]+@""",
    "secret parameter of a URL": (
        rf"{_SCHEME}\S*[?&;#]{_PARAMETER}=[^\s&;#]"
        # The letters of a name are only escaped to hide them.
        rf"|{_SCHEME}\S*[?&;#]{_NAME}%[4-7][0-9A-Fa-f][^\s=&;#]*=[^\s&;#]"
    ),
    "password, token or key": (
        rf"(?:^|[^A-Za-z0-9]){_LONG}[\"']?\s*=\s*[\"']?{_LITERAL}"
        rf"|(?:^|[^A-Za-z0-9])[A-Z0-9_]{{1,60}}_(?:PASS|PWD|PW|KEY|AUTH)=[\"']?{_LITERAL}"
        rf"|--{_LONG}\s+[\"']?{_LITERAL}"
        rf"|[\"']{_LONG}[\"']\s*:\s*[\"'][^\"']"
        r"|(?i:bearer)\s+[A-Za-z0-9+/=._~-]{16}"
    ),
    "access key": (
        r"(?:^|[^A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?:[^A-Za-z0-9]|$)"
        r"|(?:^|[^A-Za-z0-9])(?:gh[opsur]_[A-Za-z0-9]{30}|github_pat_\w{30}|glpat-[\w-]{20}"
        r"|xox[abeoprs]-[\w-]{10}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.)"
    ),
    "private key": "-----BEGIN [A-Z0-9 ]*PRIVATE KEY",
}
"""Pattern of each kind of secret in a text."""

CONTROL_CHARACTERS = r"[\x00-\x1f\x7f-\x9f\x{2028}\x{2029}]"
"""Line ends and control characters, as in the chart's schema (in Go's notation)."""

_TEXTS = {kind: re.compile(pattern) for kind, pattern in TEXTS.items()}
_VARIABLE, _KEY = re.compile(VARIABLE), re.compile(KEY)

# Redacted in messages, except the groups. Look-around is allowed here.
_MASKED = tuple(
    (re.compile(pattern), kept)
    for pattern, kept in (
        (rf"({_SCHEME}|//){_IN_TEXT}*{_COLON}{_IN_TEXT}+(?=@{_HOST})", r"\1***"),
        (r"""((?i:https?|s3)://)[^\s/?#"'<>@]+(?=@)""", r"\1***"),
        (rf"([?&;#]{_PARAMETER}=)[^\s&;#\"'<>]+", r"\1***"),
        (rf"([?&;#]{_NAME}%[4-7][0-9A-Fa-f][^\s=&;#]*=)[^\s&;#\"'<>]+", r"\1***"),
        (
            r"""((?:^|[\s"'=(]))[^\s:/@"'=(]+:[^\s@/][^\s@"']*(?=@[^\s@:/]+(?::[0-9]{1,5}\b|/))""",
            r"\1***",
        ),
        (
            rf"((?:^|[^A-Za-z0-9])(?:{_LONG}|[A-Z0-9_]{{1,60}}_(?:PASS|PWD|PW|KEY|AUTH))[\"']?\s*=\s*)"
            rf"(?:\"[^\"]*\"|'[^']*'|{_LITERAL}[^\s&]*)",
            r"\1***",
        ),
        (rf"([\"']{_LONG}[\"']\s*:\s*[\"'])[^\"']+", r"\1***"),
        (rf"(--{_LONG}\s+[\"']?){_LITERAL}[^\s\"']*", r"\1***"),
        (r"((?i:bearer)\s+)[A-Za-z0-9+/=._~-]{16,}", r"\1***"),
        (r"(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END[^\n]*|$)", "***"),
        (r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b", "***"),
        (r"\b(?:gh[opsur]_|github_pat_|glpat-|xox[abeoprs]-)[\w-]{10,}", "***"),
        (r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]*", "***"),
    )
)
_SHORTEST = 4  # a shorter value would match in too many words


def secret_in(text: str) -> str | None:
    """Return what kind of secret a text holds, or None."""
    return next((kind for kind, pattern in _TEXTS.items() if pattern.search(text)), None)


def is_secret_variable(name: str) -> bool:
    """Return whether the name of an environment variable marks its value as secret."""
    return _VARIABLE.match(name) is not None and name not in NOT_SECRET


def control_character_in(text: str) -> str | None:
    """Return the code of the first control character or line separator, as ``U+000A``; or None."""
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            return f"U+{ord(character):04X}"
    return None


def problem_in(value: object) -> str | None:
    """Return why a value of a setting is invalid, without repeating it; or None.

    All texts in lists and mappings are looked at, keys included.
    """
    for where, key, text in _texts(value, ""):
        kind = secret_in(text)
        if kind is None and key is not None and text and _KEY.match(key):
            kind = "password, token or key"
        if kind is not None:
            return f"{where}holds a secret ({kind})"
        if (character := control_character_in(text)) is not None:
            name = "line break" if character in ("U+000A", "U+000D") else "control character"
            return f"{where}takes one line of printable characters, and has a {name} ({character})"
    return None


def redact(text: str, *more: str | None, environment: Mapping[str, str] | None = None) -> str:
    """Return a message with its secrets replaced by ``***``.

    These are `more`, which the caller knows, the values of variables of the environment (by
    default the process's) that are secret by name, and texts with the form of a secret.
    """
    variables = os.environ if environment is None else environment
    known = [v for n, v in variables.items() if is_secret_variable(n) and len(v) >= _SHORTEST]
    for secret in sorted({*known, *filter(None, more)}, key=len, reverse=True):
        text = text.replace(secret, "***").replace(quote(secret, safe=""), "***")
    for pattern, kept in _MASKED:
        text = pattern.sub(kept, text)
    return text


def _texts(value: object, where: str) -> Iterator[tuple[str, str | None, str]]:
    """Yield where in a setting each text is, under which key, and the text; without recursion."""
    left: list[tuple[str, str | None, object]] = [(where, None, value)]
    while left:
        place, key, part = left.pop()
        if isinstance(part, str):
            yield place, key, part
        elif isinstance(part, dict):
            for name, inner in part.items():
                named = str(name)
                yield place, None, named
                # The pod's manifests name variables so.
                variable = part.get("name") if name == "value" else None
                left.append((f"{place}{_shown(named)}: ", str(variable or named), inner))
        elif isinstance(part, list | tuple | set | frozenset):
            left += [(place, None, inner) for inner in part]


def _shown(name: str) -> str:
    """Return a key as a message may show it."""
    return redact("".join(c if c.isprintable() else "?" for c in name), environment={})[:60]
