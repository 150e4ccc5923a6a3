"""Disjoint sets of integers: which ids have been declared the same."""

import numpy as np


class Union:
    """Disjoint sets over 0 … count-1; each set is known by its smallest member (Tarjan 1975).

    Example:
        >>> union = Union(4)
        >>> union.join(np.array([1]), np.array([3]))
        >>> union.roots().tolist()
        [0, 1, 2, 1]
    """

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def grow(self, count: int) -> np.ndarray:
        """Adds `count` sets of one member each and returns their numbers."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def join(self, left: np.ndarray, right: np.ndarray) -> None:
        """Makes each member of `left` and the one of `right` at its place members of one set."""
        count = len(self._parent)
        for pair in np.unique(left.astype(np.int64).ravel() * count + right.ravel()).tolist():
            a, b = self.root(pair // count), self.root(pair % count)
            if a != b:
                self._parent[max(a, b)] = min(a, b)

    def root(self, member: int) -> int:
        """The smallest member of the set of `member`."""
        parent = self._parent
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    def roots(self) -> np.ndarray:
        """The root of every member, shape (count,)."""
        found = np.array(self._parent, np.int64)
        while not np.array_equal(found, above := found[found]):
            found = above
        return found
