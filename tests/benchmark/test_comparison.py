import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from records_samples import latency

from benchmarks import replays
from mobileprune.benchmark import comparison
from mobileprune.benchmark.comparison import compare, difference_of, verdicts, warnings_of
from mobileprune.benchmark.statistics import Ratio
from mobileprune.errors import InterpreterError, SettingsError

# Made by `python benchmarks/comparisons.py --only=record` beside a busy neighbour.
RECORDING = Path(__file__).resolve().parent / "recording.npz"


def pairs(seed: int, factor: float = 1.0, processes: int = 12, rounds: int = 20) -> tuple[list, list]:
    """Files whose processes differ by 1%, with disturbances that only add, and more of them in some processes."""
    generator = np.random.default_rng(seed)
    made: tuple[list, list] = ([], [])
    for _ in range(processes):
        busy = generator.uniform(0, 0.3)
        for side, scale in zip(made, (factor, 1.0), strict=True):
            lasting = generator.normal(1, 0.01)
            side.append(scale * lasting * (1 + generator.exponential(busy, (rounds, 4))))
    return made


def claimed(seeds, **how) -> float:
    return float(np.mean([replays.differs(compare(*pairs(seed, **how))) for seed in seeds]))


def test_a_file_is_not_said_to_differ_from_itself_and_five_percent_are_found():
    assert claimed(range(400)) <= 0.01
    assert claimed(range(400, 500), factor=1.05) >= 0.9
    assert claimed(range(500, 600), factor=0.95) >= 0.9


def test_rounds_taken_for_samples_claim_too_much():
    """What the comparison is there to prevent, so that the test above can fail."""
    wrong = []
    for seed in range(60):
        over, under = pairs(seed)
        recording = {"baseline": under, "twin": over, "slower": over}
        (ratio,) = replays.naive(recording, "twin", 1)
        wrong.append(not ratio.low <= 1 <= ratio.high)
    assert np.mean(wrong) > 0.15


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Drawn from what its test is exact for: any differences of pairs that are symmetric."""
    generator = np.random.default_rng(0)
    inside = []
    for _ in range(2000):
        logs = 0.1 + 0.02 * generator.standard_t(2, 8)
        ratio = compare([np.array([each]) for each in np.exp(logs)], [np.ones(1)] * 8)
        inside.append(ratio.low <= np.exp(0.1) <= ratio.high)
    assert ratio.confidence == pytest.approx(1 - 2 / 256)
    assert np.mean(inside) == pytest.approx(ratio.confidence, abs=0.006)


def test_the_exact_test_is_that_of_the_tables():
    """Wilcoxon's signed-rank test, two-sided 1%: critical values as tabulated, and counted out for six pairs."""
    cuts = {count: comparison._signed_rank_cut(count, 0.01)[0] for count in (8, 10, 12, 20)}
    assert cuts == {8: 0, 10: 3, 12: 7, 20: 37}
    sums = [sum(signs) for signs in itertools.product(*((0, rank) for rank in range(1, 7)))]
    cut, confidence = comparison._signed_rank_cut(6, 0.2)
    assert confidence == pytest.approx(1 - 2 * np.mean([each <= cut for each in sums]))
    assert 2 * np.mean([each <= cut + 1 for each in sums]) > 0.2


def test_one_process_in_a_bad_place_does_not_decide():
    over, under = pairs(3, factor=1.05)
    over[4] = over[4] * 1.5
    assert replays.slower(compare(over, under))
    under[4] = under[4] * 1.5 * 1.5
    assert compare(over, under).median == pytest.approx(1.05, abs=0.02)


def test_several_comparisons_share_the_risk():
    over, under = pairs(0)
    alone, one_of_four = compare(over, under), compare(over, under, comparisons=4)
    assert one_of_four.low < alone.low < alone.high < one_of_four.high
    assert one_of_four.confidence >= 1 - 0.01 / 4


def test_few_pairs_say_how_sure_they_are():
    assert compare([np.array([2.0])] * 6, [np.array([1.0])] * 6) == Ratio(2.0, 2.0, 2.0, 1 - 2 / 64)


@pytest.mark.parametrize(
    ("over", "under"),
    [
        ([np.ones(3)] * 5, [np.ones(3)] * 5),
        ([np.ones(3)] * 7, [np.ones(3)] * 6),
        ([np.ones(3)] * 6, [np.zeros(3)] * 6),
        ([np.ones(0)] * 6, [np.ones(3)] * 6),
        ([np.full(3, np.nan)] * 6, [np.ones(3)] * 6),
    ],
)
def test_what_cannot_be_compared_is_refused(over, under):
    with pytest.raises(SettingsError):
        compare(over, under)


def compared(low: float, high: float):
    return dataclasses.replace(latency(1.0), ratio=(low * high) ** 0.5, ratio_low=low, ratio_high=high)


def test_verdicts_in_words():
    results = [
        latency(1.0),
        compared(1 / 1.47, 1 / 1.42),
        compared(1.042, 1.057),
        compared(0.996, 1.004),
        compared(1.002, 1.009),
        compared(0.92, 1.11),
        latency(1.0, None),
        InterpreterError("It crashed."),
    ]
    assert verdicts(list("abcdefgh"), results) == [
        "b is 1.42 to 1.47 times faster than a",
        "c is 1.042 to 1.057 times slower than a",
        "d against a: no difference (0.996 to 1.004 of its time)",
        "e against a: no difference (1.002 to 1.009 of its time)",
        "f against a: no difference found, but too uneven to tell small ones (0.920 to 1.110 of its time)",
        "g against a: not compared, a failed",
        "h against a: not compared, it failed",
    ]
    assert verdicts(["a", "b"], [compared(1.2, 1.3), latency(1.0)], baseline=1) == [
        "a is 1.20 to 1.30 times slower than b"
    ]


def test_a_latency_that_was_not_compared_has_no_difference():
    with pytest.raises(SettingsError, match="no ratio"):
        difference_of(latency(1.0, None))


def test_what_disturbed_a_measurement_is_said():
    calm = dataclasses.replace(latency(1.0), drift=-0.01, outliers=0.01)
    assert warnings_of(calm) == warnings_of(latency(1.0)) == []
    (line,) = warnings_of(dataclasses.replace(calm, drift=0.12))
    assert line.startswith("its times rose by 12%")
    (line,) = warnings_of(dataclasses.replace(calm, outliers=0.2, drift=None))
    assert line.startswith("20% of its inferences were interrupted")


@pytest.fixture(scope="module")
def recording():
    return replays.read_recording(RECORDING)


def test_of_200_replayed_comparisons_of_a_file_with_itself_few_claim_a_difference(recording):
    assert np.mean([replays.differs(each) for each in replays.replay(recording, "twin")]) <= 0.05


def test_of_200_with_a_slowdown_of_five_percent_most_find_it(recording):
    assert np.mean([replays.slower(each) for each in replays.replay(recording, "twin", factor=1.05)]) >= 0.9


def test_replays_notice_an_analysis_that_claims_too_much(recording):
    rounds = replays.naive(recording, "twin", 60)
    assert np.mean([not each.low <= 1 <= each.high for each in rounds]) > 0.05


def test_recordings_survive(tmp_path):
    generator = np.random.default_rng(0)
    times = {name: [1e5 * generator.uniform(1, 2, (rounds, 4)) for rounds in (20, 3)] for name in replays.FILES}
    replays.write_recording(tmp_path / "r.npz", times)
    back = replays.read_recording(tmp_path / "r.npz")
    assert [len(each) for each in back["twin"]] == [64, 12]
    assert back["slower"][1] == pytest.approx(times["slower"][1].ravel(), rel=1e-3)
