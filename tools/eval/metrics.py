"""How good rankings are: evidence recall, reciprocal rank, and how sure that is. Needs numpy."""
from dataclasses import dataclass

import numpy as np

COUNTS = (1, 5, 10, 20)
DEPTH = max(COUNTS)         # how far a ranking is looked at
RESAMPLES = 2000


def names() -> list[str]:
    return [f"{kind}@{k}" for kind in ("any", "all") for k in COUNTS] + ["mrr"]


def of_ranking(shown: list[set[int]], evidence: set[int]) -> list[float]:
    """The figures of `names` for one question; `shown`: of each result, best first, what it shows of what is looked for.

    any@k: the first k results show some of the evidence; all@k: all of it. mrr: one over the rank of the first result
    that shows some, 0 when none of the first 20 does.
    """
    found: set[int] = set()
    first, any_at, all_at = 0, [], []
    for rank, result in enumerate(shown[:DEPTH], 1):
        found |= result & evidence
        if found and not first:
            first = rank
        if rank in COUNTS:
            any_at.append(float(bool(found)))
            all_at.append(float(found == evidence))
    for _ in COUNTS[len(any_at):]:      # fewer results than k
        any_at.append(float(bool(found)))
        all_at.append(float(found == evidence))
    return [*any_at, *all_at, 1 / first if first else 0.0]


@dataclass
class Interval:
    mean: float
    low: float
    high: float


def draws(questions: int, seed: int) -> np.ndarray:
    """[resamples, questions] how often each question is in a resample. The same for all systems, so that differences pair."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(questions, np.full(questions, 1 / questions), RESAMPLES)


def intervals(values: np.ndarray, drawn: np.ndarray) -> list[Interval]:
    """Mean and 95% bootstrap interval (percentiles) of each column of [questions, figures]."""
    means = drawn @ values / len(values)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return [Interval(*one) for one in zip(values.mean(0).tolist(), low.tolist(), high.tolist())]


def percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{p}": float(np.percentile(values, p)) for p in (50, 95, 99)}
