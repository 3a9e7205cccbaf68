"""Times several steps in turns, so that they can be compared as ratios."""
import statistics
import time
from typing import Callable, Dict, List


def seconds_of(step: Callable[[], None]) -> float:
    """Time a step that is finished when it returns."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def time_in_turns(
        steps: Dict[str, Callable[[], None]],
        rounds: int,
        warm_up: int = 2,
        progress: Callable = iter,
        clock: Callable[[Callable[[], None]], float] = seconds_of
) -> Dict[str, List[float]]:
    """Time several steps, one after the other in every round.

    Args:
        steps (Dict[str, Callable]): Steps by variant.
        rounds (int): Number of timed rounds.
        warm_up (int): Number of rounds before, which are not timed. Defaults
            to 2.
        progress (Callable): Function that wraps the list of rounds, to show a
            bar. Defaults to ``iter``.
        clock (Callable): Function that runs a step and returns how many seconds
            it took. Defaults to :func:`seconds_of`.

    Returns:
        Dict[str, List[float]]: Seconds in each round, by variant.
    """
    seconds = {name: [] for name in steps}
    for number in progress(range(warm_up + rounds)):
        for name, step in steps.items():
            taken = clock(step)
            if number >= warm_up:
                seconds[name].append(taken)
    return seconds


def ratio(seconds: List[float], reference: List[float]) -> float:
    """Compute the median over rounds of the ratio of two variants' times."""
    return statistics.median(a / b for a, b in zip(seconds, reference))
