"""Groups of what pairs link, however long the chain: connected components, while pairs come by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]

HELD = 1 << 21  # pairs that are held before they are made into as few as say the same


class Linked:
    """The components of a graph on n points to which edges are added."""

    def __init__(self, points: int) -> None:
        """Every point is alone."""
        self.points = points
        self._pairs: list[tuple[Places, Places]] = []
        self._held = 0

    def add(self, first: Places, second: Places) -> None:
        """Link points pair by pair [p]."""
        self._pairs.append((first, second))
        self._held += len(first)
        if self._held > HELD:
            lowest = self.lowest()
            apart = np.flatnonzero(lowest != np.arange(self.points))
            self._pairs, self._held = [(apart, lowest[apart])], len(apart)

    def lowest(self) -> Places:
        """For every point [n] the lowest one that it is linked to; itself where that is it.

        >>> linked = Linked(5)
        >>> linked.add(np.array([4, 2]), np.array([2, 1]))
        >>> linked.lowest().tolist()
        [0, 1, 1, 3, 1]
        """
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        first = np.concatenate([np.empty(0, dtype=np.int64), *(a for a, _ in self._pairs)])
        second = np.concatenate([np.empty(0, dtype=np.int64), *(b for _, b in self._pairs)])
        graph = coo_matrix((np.ones(len(first), dtype=np.int8), (first, second)), (self.points, self.points))
        _, part = connected_components(graph, directed=False)
        lowest = np.full(self.points, self.points, dtype=np.int64)
        np.minimum.at(lowest, part, np.arange(self.points, dtype=np.int64))
        return lowest[part]
