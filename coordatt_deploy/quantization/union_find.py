"""Disjoint sets that are merged step by step (union-find)."""

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class UnionFind(Generic[Item]):
    """Sets of items; an item that is met for the first time is a set of its own."""

    def __init__(self) -> None:
        self._parent: dict[Item, Item] = {}

    def __iter__(self) -> Iterator[Item]:
        """Give every item in the order in which it was met."""
        return iter(self._parent)

    def find(self, item: Item) -> Item:
        """Return the item that stands for the whole set of *item*; it may be another one after the next ``join``."""
        self._parent.setdefault(item, item)
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def join(self, first: Item, *others: Item) -> None:
        """Merge the sets of these items."""
        root = self.find(first)
        for other in others:
            self._parent[self.find(other)] = root
