"""The rule of the pool, by itself and simulated."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covidseg.sweep.schedule import Devices, best_order, ideal_makespan, makespan


@dataclass(eq=False)
class Job:
    devices: int
    cost: float


jobs_of_a_pool = st.lists(st.builds(Job, devices=st.integers(1, 6), cost=st.floats(1, 100)), min_size=1, max_size=30)


@settings(max_examples=200, deadline=None)
@given(jobs_of_a_pool)
def test_no_device_is_given_twice_and_every_job_runs(jobs):
    pool, waiting, running, order = Devices(list("abcdef")), best_order(jobs, 6), [], []
    while waiting or running:
        while (job := pool.next(waiting)) is not None:
            waiting.remove(job)
            taken = pool.take(job)
            assert len(taken) == job.devices
            assert not {device for _, ids in running for device in ids} & set(taken)
            running.append((job, taken))
            order.append(job)
        running.sort(key=lambda entry: entry[0].cost)
        pool.give(*running.pop(0))
    assert len(order) == len(jobs)


def test_a_wide_run_waits_only_for_what_ran_before_its_turn():
    """Small runs that keep coming must not keep a run of four devices from ever finding four free."""
    pool = Devices(list("abcdef"))
    first = [Job(1, 1.0) for _ in range(4)]
    held = {id(job): (job, pool.take(job)) for job in first}
    wide = Job(4, 1.0)
    passed = 0
    for job in first:
        while (small := pool.next([wide, Job(1, 1.0)])) is not None and small is not wide:
            held[id(small)] = (small, pool.take(small))
            passed += 1
        pool.give(*held.pop(id(job)))
    assert passed == 2  # the two devices that the wide run leaves over
    assert pool.next([wide, Job(1, 1.0)]) is wide


def test_longest_first_beats_the_order_of_the_table():
    costs = [1, 1, 1, 1, 1, 1, 1, 1, 1, 6]
    jobs = [Job(1, float(cost)) for cost in costs]
    assert makespan(jobs, 3) == 9.0
    assert makespan(best_order(jobs, 3), 3) == 6.0 == ideal_makespan(jobs, 3)


def test_the_order_of_the_table_is_kept_where_longest_first_is_worse():
    """5, 4, 3, 3, 3 on two devices: longest first needs 10, the pairs 5+4 and 3+3+3 need 9."""
    jobs = [Job(1, 3.0), Job(1, 5.0), Job(1, 3.0), Job(1, 4.0), Job(1, 3.0)]
    assert makespan(sorted(jobs, key=lambda job: -job.cost), 2) == 10.0
    assert makespan(best_order(jobs, 2), 2) == makespan(jobs, 2) == 9.0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.builds(Job, devices=st.just(1), cost=st.floats(1, 100)), min_size=1, max_size=30), st.integers(1, 6))
def test_one_device_runs_stay_within_grahams_bound(jobs, devices):
    planned = makespan(best_order(jobs, devices), devices)
    assert ideal_makespan(jobs, devices) <= planned * (1 + 1e-9)
    assert planned <= sum(j.cost for j in jobs) / devices + max(j.cost for j in jobs)


def test_the_makespan_by_hand():
    assert makespan([Job(2, 3.0), Job(1, 2.0), Job(1, 2.0), Job(1, 2.0)], 2) == pytest.approx(7.0)
