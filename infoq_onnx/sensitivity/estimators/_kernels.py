"""Compiled kernels of the KSG and Ross estimators. They take sorted arrays and return one estimate per projection.

All kernels share one file, because numba's cache detects changes only in the file of the cached kernel. An edited
helper in another file would leave stale machine code in the cache.

A *radius* is the largest float below the distance to the k-th neighbour. `<= radius` is therefore the strict
`< distance` of the papers, and ties at distance 0 still count each other, as in scikit-learn. Distances are always
computed as differences of two values and never compared as `value ± radius`, which can round onto the boundary point.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from infoq_onnx.jit import compiled, compiled_parallel

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@compiled
def _first_within(values: FloatArray, at: int, low: int, radius: float, guess: int) -> int:
    """Return the index of the first entry of sorted `values[low:at + 1]` within `radius` of `values[at]`.

    The search starts at `guess` and doubles its steps until it has passed the entry, then bisects. A good guess
    therefore takes few steps.
    """
    value = values[at]
    inside = min(max(guess, low), at)
    step = 1
    if value - values[inside] <= radius:
        outside = inside - 1
        while outside >= low and value - values[outside] <= radius:
            inside = outside
            outside -= step
            step += step
        outside = max(outside, low - 1)
    else:
        outside = inside
        inside += 1
        while inside < at and value - values[inside] > radius:
            outside = inside
            inside += step
            step += step
        inside = min(inside, at)
    while inside - outside > 1:
        middle = (inside + outside) >> 1
        if value - values[middle] <= radius:
            inside = middle
        else:
            outside = middle
    return inside


@compiled
def _last_within(values: FloatArray, at: int, high: int, radius: float, guess: int) -> int:
    """Return the index of the last entry of sorted `values[at:high]` within `radius` of `values[at]`.

    See `_first_within`.
    """
    value = values[at]
    inside = max(min(guess, high - 1), at)
    step = 1
    if values[inside] - value <= radius:
        outside = inside + 1
        while outside < high and values[outside] - value <= radius:
            inside = outside
            outside += step
            step += step
        outside = min(outside, high)
    else:
        outside = inside
        inside -= 1
        while inside > at and values[inside] - value > radius:
            outside = inside
            inside -= step
            step += step
        inside = max(inside, at)
    while outside - inside > 1:
        middle = (inside + outside) >> 1
        if values[middle] - value <= radius:
            inside = middle
        else:
            outside = middle
    return inside


@compiled
def _scan(
    xs: FloatArray, ys: FloatArray, x: float, y: float, start: int, stop: int, step: int, nearest: FloatArray
) -> None:
    """Update `nearest`, the sorted k smallest distances, with the points `start`, `start + step`, … before `stop`.

    The distance of the points in y increases along the scan. The scan ends at the first point whose distance in y alone
    is too large.
    """
    last = nearest.size - 1
    for point in range(start, stop, step):
        distance_y = abs(ys[point] - y)
        if distance_y >= nearest[last]:
            break
        distance = max(abs(xs[point] - x), distance_y)
        if distance < nearest[last]:
            slot = last
            while slot > 0 and nearest[slot - 1] > distance:
                nearest[slot] = nearest[slot - 1]
                slot -= 1
            nearest[slot] = distance


@compiled
def _ksg(
    x_sorted: FloatArray, x_rank: IntArray, y: FloatArray, y_order: IntArray, k: int, psi: FloatArray, width: int
) -> float:
    """Compute KSG-1 of one projection pair, in strips of `width` points that are adjacent in x and sorted by y.

    The neighbours of a point lie in few strips, and near the point's y in each. The cursor of a strip only moves up,
    because points are processed in ascending y.
    """
    n = y.size
    if x_sorted[0] == x_sorted[n - 1] or y[y_order[0]] == y[y_order[n - 1]]:
        return 0.0
    strips = (n + width - 1) // width
    cursor = np.empty(strips, np.int64)
    for strip in range(strips):
        cursor[strip] = strip * width
    y_sorted = np.empty(n)
    xs, ys = np.empty(n), np.empty(n)
    x_ranks, y_ranks = np.empty(n, np.int64), np.empty(n, np.int64)
    for rank in range(n):
        sample = y_order[rank]
        y_sorted[rank] = y[sample]
        strip = x_rank[sample] // width
        point = cursor[strip]
        cursor[strip] += 1
        xs[point], ys[point] = x_sorted[x_rank[sample]], y[sample]
        x_ranks[point], y_ranks[point] = x_rank[sample], rank

    nearest = np.empty(k)
    total = 0.0
    # rank distances of the previous point's neighbours: good guesses for the next point
    left, right, below, above = 0, 0, 0, 0
    for home in range(strips):
        for strip in range(strips):
            cursor[strip] = strip * width
        home_start, home_stop = home * width, min(n, (home + 1) * width)
        for point in range(home_start, home_stop):
            x_i, y_i = xs[point], ys[point]
            nearest[:] = np.inf
            _scan(xs, ys, x_i, y_i, point + 1, home_stop, 1, nearest)
            _scan(xs, ys, x_i, y_i, point - 1, home_start - 1, -1, nearest)
            # low … high becomes the range of x ranks that can lie within the k-th distance
            low, high = home_start, home_stop
            for step in (-1, 1):
                strip = home + step
                while 0 <= strip < strips:
                    start, stop = strip * width, min(n, (strip + 1) * width)
                    gap = x_i - x_sorted[stop - 1] if step < 0 else x_sorted[start] - x_i
                    if gap > nearest[k - 1]:
                        break
                    low, high = min(low, start), max(high, stop)
                    middle = cursor[strip]
                    while middle < stop and ys[middle] < y_i:
                        middle += 1
                    cursor[strip] = middle
                    _scan(xs, ys, x_i, y_i, middle, stop, 1, nearest)
                    _scan(xs, ys, x_i, y_i, middle - 1, start - 1, -1, nearest)
                    strip += step
            radius = np.nextafter(nearest[k - 1], 0.0)
            at = x_ranks[point]
            left = at - _first_within(x_sorted, at, low, radius, at - left)
            right = _last_within(x_sorted, at, high, radius, at + right) - at
            total += psi[left + right + 1]
            at = y_ranks[point]
            below = at - _first_within(y_sorted, at, 0, radius, at - below)
            above = _last_within(y_sorted, at, n, radius, at + above) - at
            total += psi[below + above + 1]
    information: float = psi[k] + psi[n] - total / n
    return information


@compiled_parallel
def ksg_kernel(
    x_sorted: FloatArray, x_rank: IntArray, y: FloatArray, y_order: IntArray, k: int, psi: FloatArray, width: int
) -> FloatArray:
    """Run `_ksg` on every row of arrays [m, n]; each row is summed by one thread, in one order."""
    estimates = np.empty(y.shape[0])
    for row in prange(y.shape[0]):
        estimates[row] = _ksg(x_sorted[row], x_rank[row], y[row], y_order[row], k, psi, width)
    return estimates


@compiled
def _ross(
    x_sorted: FloatArray, x_order: IntArray, codes: IntArray, starts: IntArray, ks: IntArray, psi: FloatArray
) -> float:
    """Compute ⟨ψ(m_i)⟩ of one projection.

    m_i is the number of samples within the distance from sample i to its k-th neighbour of the same class.
    """
    n = x_sorted.size
    cursor = starts[:-1].copy()
    members, ranks = np.empty(n), np.empty(n, np.int64)
    for rank in range(n):
        code = codes[x_order[rank]]
        members[cursor[code]] = x_sorted[rank]
        ranks[cursor[code]] = rank
        cursor[code] += 1

    total = 0.0
    below, above = 0, 0
    for code in range(ks.size):
        k, stop = ks[code], starts[code + 1]
        # a sample and its k nearest samples of the same class are adjacent: slide this window along with the sample
        left = starts[code]
        for member in range(starts[code], stop):
            x_i = members[member]
            while left + k + 1 < stop and members[left + k + 1] - x_i < x_i - members[left]:
                left += 1
            distance = max(x_i - members[left], members[left + k] - x_i)
            at, radius = ranks[member], np.nextafter(distance, 0.0)
            below = at - _first_within(x_sorted, at, 0, radius, at - below)
            above = _last_within(x_sorted, at, n, radius, at + above) - at
            total += psi[below + above + 1]
    return total / n


@compiled_parallel
def ross_kernel(
    x_sorted: FloatArray, x_order: IntArray, codes: IntArray, starts: IntArray, ks: IntArray, psi: FloatArray
) -> FloatArray:
    """Run `_ross` on every row of arrays [m, n]; each row is summed by one thread, in one order."""
    means = np.empty(x_sorted.shape[0])
    for row in prange(x_sorted.shape[0]):
        means[row] = _ross(x_sorted[row], x_order[row], codes, starts, ks, psi)
    return means
