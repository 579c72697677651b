"""Read untrusted YAML: bounded in depth and size, with errors that do not repeat its text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEEPEST = 64
"""Levels of nesting. PyYAML's own readers recurse: the fast one crashes the interpreter."""

_CHARACTERS_PER_NODE = 64  # a long text counts as several nodes

Path = tuple[str, ...]


class YamlError(ValueError):
    """Invalid YAML. The message has line and column and no part of the text."""


class UniqueKeyLoader(yaml.CSafeLoader):
    """SafeLoader that rejects a duplicate key, where PyYAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Make a dict of a mapping."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                where = _place(key.start_mark)
                raise YamlError(f"{where}: the key {key.value!r} is given twice")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep=deep)


def load_yaml(
    text: str, *, loader: type[yaml.CSafeLoader] = UniqueKeyLoader, largest: int | None = None
) -> Any:
    """Parse one document; raise `YamlError` if it is no YAML, nested too deeply, or too large.

    `largest` bounds its nodes once its aliases are expanded; None bounds aliases only by the
    number of nodes that are written out.
    """
    return _read(text, loader, largest)[0]


def load_yaml_with_lines(text: str, *, largest: int) -> tuple[Any, Mapping[Path, int]]:
    """Parse one document as `load_yaml` does; return the line of each key as well, by its path."""
    values, node = _read(text, UniqueKeyLoader, largest)
    return values, dict(_lines(node, ())) if node is not None else {}


def _read(text: str, loader: type[yaml.CSafeLoader], largest: int | None) -> tuple[Any, Any]:
    reader = None
    try:
        size = _Size(largest)
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            size.add(event)
        reader = loader(text)
        node = reader.get_single_node()
        return (None if node is None else reader.construct_document(node)), node
    except YamlError:
        raise
    except yaml.MarkedYAMLError as error:
        raise YamlError(_describe(error)) from None
    except yaml.YAMLError as error:
        raise YamlError(str(getattr(error, "reason", "it can't be read"))) from None
    except (ValueError, TypeError, OverflowError, LookupError, AttributeError):
        # PyYAML's constructors let through what is wrong with a date, a number or a tag.
        raise YamlError("it has a value that is not what it looks like: quote texts") from None
    finally:
        if reader is not None:
            reader.dispose()


class _Size:
    """How large a document becomes, from the parser's events, which are made without recursion."""

    def __init__(self, largest: int | None) -> None:
        self._largest = largest
        self._written = self._expanded = 0
        self._anchored: dict[str, int] = {}
        self._open: list[tuple[str | None, int]] = []

    def add(self, event: yaml.Event) -> None:
        """Count an event; raise where the document is too large or too deep."""
        if isinstance(event, yaml.CollectionStartEvent):
            self._open.append((event.anchor, self._expanded))
            if len(self._open) > DEEPEST:
                raise _too_much(event, f"it is nested more than {DEEPEST} levels deep")
            self._count(event, 1)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = self._open.pop()
            self._remember(anchor, self._expanded - before)
        elif isinstance(event, yaml.ScalarEvent):
            size = 1 + len(event.value) // _CHARACTERS_PER_NODE
            self._remember(event.anchor, size)
            self._count(event, size)
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in self._open):
                raise _too_much(event, "an alias stands inside what it refers to")
            self._count(event, 1, self._anchored.get(event.anchor or "", 1))

    def _remember(self, anchor: str | None, size: int) -> None:
        if anchor is not None:
            self._anchored[anchor] = size

    def _count(self, event: yaml.Event, written: int, expanded: int | None = None) -> None:
        self._written += written
        self._expanded += written if expanded is None else expanded
        allowed = 10 * self._written + 1000 if self._largest is None else self._largest
        if self._expanded > allowed:
            raise _too_much(event, "it has too many values, those that aliases repeat included")


def _too_much(event: yaml.Event, problem: str) -> YamlError:
    return YamlError(f"{_place(event.start_mark)}: {problem}")


def _describe(error: yaml.MarkedYAMLError) -> str:
    """Describe an error and its place, without names of aliases and tags: they may be passwords."""
    words = (text.partition(": ")[0] for text in (error.context, error.problem) if text)
    problem = re.sub(r"\s*'[^'<>]{2,}'", "", ", ".join(words))
    mark = error.problem_mark or error.context_mark
    return f"{_place(mark)}: {problem}" if mark is not None else problem


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _lines(node: yaml.Node, path: Path) -> Iterator[tuple[Path, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                inner = (*path, key.value)
                yield inner, key.start_mark.line + 1
                yield from _lines(value, inner)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            inner = (*path, str(number))
            yield inner, value.start_mark.line + 1
            yield from _lines(value, inner)
