"""Tables and lists of a page, as data: the template and the terminal show the same ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column's name and unit; numbers stand to the right."""

    name: str
    unit: str = ""
    numeric: bool = True

    @property
    def heading(self) -> str:
        """Name and unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


@dataclass(frozen=True)
class Cell:
    """A text with the class that colours it."""

    text: str
    css: str = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """A table; its title stands above it, its note below."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Entry:
    """A name and what it stands for."""

    name: str
    text: str
    code: bool = False
