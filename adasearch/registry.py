"""Names to things: operations, objectives, runtimes, methods. One decorator registers, one lookup explains itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """A dictionary whose missing keys name the known choices. ``of`` is the class of its items, where they have one."""

    def __init__(self, kind: str, of: type[T] | None = None):
        self.kind, self.of = kind, of
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files its argument under ``name``. Raises ValueError when the name is taken by another.

        Raises TypeError for an item of another class.
        """

        def add(item: T) -> T:
            if self.of is not None and not isinstance(item, self.of):
                raise TypeError(f"{self.kind} {name!r}: {item!r} is no {self.of.__name__}; choices: register_{self.kind}({name!r}, ...)")
            if name in self._items and self._items[name] is not item:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._items[name] = item
            return item

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._items:
            raise KeyError(f"unknown {self.kind} {name!r}; known: {', '.join(sorted(self._items))}")
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)
