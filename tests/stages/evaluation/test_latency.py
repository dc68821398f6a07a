import pytest
import torch

from stages.evaluation import latency


def test_the_warm_up_is_not_timed_and_the_percentiles_are_by_hand(monkeypatch):
    """Two warm-up calls of 9 s, then 1, 2, 3, 4, 5 s: the median is 3 s, the 95th percentile 4.8 s."""
    clock, durations = [0.0], iter([9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])

    def call() -> None:
        clock[0] += next(durations)

    timing = latency.measure(call, torch.device("cpu"), warmup=2, repeats=5)
    assert (timing.p50_ms, timing.p95_ms) == pytest.approx((3000, 4800))
    assert next(durations, None) is None


def test_the_device_is_waited_for_on_both_sides_of_the_clock(monkeypatch):
    """Work that is still under way before the call is not counted; work that the call leaves behind is."""
    clock, under_way = [0.0], [50.0]

    def synchronize(device: torch.device) -> None:
        clock[0] += under_way[0]
        under_way[0] = 0.0

    def call() -> None:
        under_way[0] += 2.0

    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(latency, "synchronize", synchronize)
    timing = latency.measure(call, torch.device("cpu"), warmup=0, repeats=1)
    assert timing.p50_ms == pytest.approx(2000)


def test_calls_take_turns_and_the_first_round_is_not_timed(monkeypatch):
    """Seconds by round: 9, 1, 3 and 9, 2, 8; medians of the last two rounds are 2 and 5 s."""
    clock, called = [0.0], []
    durations = {"a": iter([9.0, 1.0, 3.0]), "b": iter([9.0, 2.0, 8.0])}
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])

    def call(name: str) -> None:
        called.append(name)
        clock[0] += next(durations[name])

    timings = latency.measure_in_turns([lambda: call("a"), lambda: call("b")], torch.device("cpu"), rounds=2)
    assert called == ["a", "b"] * 3
    assert [timing.p50_ms for timing in timings] == pytest.approx([2000, 5000])
