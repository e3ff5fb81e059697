"""How the benches take their numbers: each candidate in turn, once for nothing, then the median."""

import statistics
import time


def timed(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def medians(times, **candidates):
    """Gives the median of what each candidate gives."""
    values = {name: [] for name in candidates}
    for turn in range(times + 1):
        for name, action in candidates.items():
            value = action()
            if turn:
                values[name].append(value)
    return {name: statistics.median(all_of_it) for name, all_of_it in values.items()}


def median_seconds(times, **candidates):
    """Gives the median of the seconds that each candidate takes."""
    return medians(times, **{name: lambda action=action: timed(action) for name, action in candidates.items()})
