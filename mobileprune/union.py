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
        self._count = count
        # Longer than `count`, for members to come: they are their own parents.
        self._parent = np.arange(count)

    def grow(self, count: int) -> np.ndarray:
        """Adds `count` sets of one member each and returns their numbers."""
        start = self._count
        self._count += count
        if self._count > len(self._parent):
            self._parent = np.append(self._parent, np.arange(len(self._parent), 2 * self._count))
        return np.arange(start, self._count)

    def join(self, left: np.ndarray, right: np.ndarray) -> None:
        """Makes each member of `left` and the one of `right` at its place members of one set."""
        left, right = self._find(left), self._find(right)
        while (apart := left != right).any():
            left, right = left[apart], right[apart]
            # A root that several others meet goes below the smallest of them; the next round joins these.
            np.minimum.at(self._parent, np.maximum(left, right), np.minimum(left, right))
            left, right = self._find(left), self._find(right)

    def root(self, member: int) -> int:
        """The smallest member of the set of `member`."""
        return int(self._find(np.array([range(self._count)[member]]))[0])

    def roots(self) -> np.ndarray:
        """The root of every member, shape (count,)."""
        return self._find(np.arange(self._count))

    def _find(self, members: np.ndarray) -> np.ndarray:
        """The roots of `members`, which from now on hang directly below them."""
        found: np.ndarray = self._parent[members]
        while not np.array_equal(found, above := self._parent[found]):
            found = above
        self._parent[members] = found
        return found
