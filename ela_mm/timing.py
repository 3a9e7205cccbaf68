"""Times that can be compared: several steps in turns, as ratios."""
import statistics
import time
from typing import Callable, Dict, List


def time_in_turns(steps: Dict[str, Callable[[], None]],
                  rounds: int,
                  warm_up: int = 2,
                  progress: Callable = iter) -> Dict[str, List[float]]:
    """Time several steps, one after the other in every round.

    Args:
        steps (Dict[str, Callable]): By variant.
        rounds (int): Timed rounds.
        warm_up (int): Rounds that are not timed. Defaults to 2.
        progress (Callable): Wraps the list of rounds, to show a bar.

    Returns:
        Dict[str, List[float]]: Seconds, one per round.
    """
    seconds = {name: [] for name in steps}
    for number in progress(range(warm_up + rounds)):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: List[float], reference: List[float]) -> float:
    """Median over rounds of a variant's time over the reference's."""
    return statistics.median(a / b for a, b in zip(seconds, reference))
