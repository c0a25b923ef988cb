"""Evidence recall, reciprocal rank and their intervals."""
import metrics
import numpy as np
import pytest


def figures(shown, evidence):
    return dict(zip(metrics.names(), metrics.of_ranking(shown, evidence)))


def test_some_and_all_of_the_evidence():
    shown = [{9}, {1}, {8}, {7}, {6}, {2}, *({30 + i} for i in range(14))]
    found = figures(shown, {1, 2})
    assert [found[f"any@{k}"] for k in (1, 5, 10, 20)] == [0, 1, 1, 1]
    assert [found[f"all@{k}"] for k in (1, 5, 10, 20)] == [0, 0, 1, 1]
    assert found["mrr"] == 0.5


def test_nothing_found_and_few_results():
    assert set(figures([{3}], {1}).values()) == {0.0}
    assert set(figures([], {1}).values()) == {0.0}
    assert figures([{1}], {1}) == {name: 1.0 for name in metrics.names()}
    assert figures([{1}, {2}], {1, 2})["all@5"] == 1


def test_what_comes_after_the_first_twenty_does_not_count():
    assert set(figures([{0}] * 20 + [{1}], {1}).values()) == {0.0}


def test_one_result_may_show_all():
    assert figures([{1, 2, 3}], {1, 2})["all@1"] == 1


def test_intervals_hold_the_mean_narrow_with_more_questions_and_repeat():
    rng = np.random.default_rng(5)
    widths = []
    for count in (50, 800):
        values = (rng.random((count, 1)) < 0.6).astype(float)
        one, = metrics.intervals(values, metrics.draws(count, 1))
        assert one.low < one.mean < one.high
        assert one == metrics.intervals(values, metrics.draws(count, 1))[0]
        widths.append(one.high - one.low)
    # 2 x 1.96 x sqrt(.6 x .4 / n)
    assert widths[0] == pytest.approx(0.27, abs=0.05) and widths[1] == pytest.approx(0.068, abs=0.012)


def test_paired_differences_are_surer_than_apart():
    rng = np.random.default_rng(6)
    one = (rng.random((400, 1)) < 0.5).astype(float)
    other = one.copy()
    other[:12] = 1 - other[:12]
    drawn = metrics.draws(400, 1)
    paired, = metrics.intervals(one - other, drawn)
    apart, = metrics.intervals(one, drawn)
    assert paired.high - paired.low < 0.5 * (apart.high - apart.low)


def test_percentiles():
    assert metrics.percentiles(list(range(101))) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
