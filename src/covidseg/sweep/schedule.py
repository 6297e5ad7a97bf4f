"""Which run starts next, and on which devices."""

import heapq
from collections.abc import Sequence
from typing import Protocol, TypeVar


class Job(Protocol):
    """What the schedule has to know of a run."""

    devices: int  # how many it needs at once
    cost: float  # expected seconds, or any measure proportional to them


J = TypeVar("J", bound=Job)


def best_order(jobs: Sequence[J], devices: int) -> list[J]:
    """Widest first; among equally wide ones longest first, or as given, whichever the simulation ends earlier with.

    Longest first is never far off (Graham 1969: at most 4/3 of the ideal for one-device runs), and the best where runs
    are many; but ten rows of two tasks on six devices leave it two short runs for a round of their own. Widest first
    gathers the devices for a wide run once, at the start, when nothing has to drain.
    """
    as_given = sorted(jobs, key=lambda job: -job.devices)
    longest_first = sorted(jobs, key=lambda job: (-job.devices, -job.cost))
    return min(longest_first, as_given, key=lambda order: makespan(order, devices))


class Devices:
    """The devices of a pool: which are free, who waits for several of them at once."""

    def __init__(self, ids: Sequence[str]):
        self.ids = list(ids)
        self.free = list(ids)
        self._overtakers: dict[int, int] = {}  # id(job) -> devices, for jobs started past a wider one

    def next(self, waiting: Sequence[J]) -> J | None:
        """The run of `waiting` (in their order) that starts now, or None until a device is given back.

        The first in line starts as soon as it fits. Until then others may pass it, but together they never hold a
        device that the first will need: a wide run waits only for what ran before its turn came, never longer.
        """
        if not waiting:
            return None
        first = waiting[0]
        if first.devices <= len(self.free):
            return first
        spare = len(self.ids) - first.devices - sum(self._overtakers.values())
        for job in waiting[1:]:
            if job.devices <= min(spare, len(self.free)):
                self._overtakers[id(job)] = job.devices
                return job
        return None

    def take(self, job: J) -> list[str]:
        """Mark the first free devices as the job's."""
        taken, self.free = self.free[: job.devices], self.free[job.devices :]
        return taken

    def give(self, job: J, ids: Sequence[str]) -> None:
        """The job is over; its devices are free again."""
        self._overtakers.pop(id(job), None)
        free = {*self.free, *ids}
        self.free = [device for device in self.ids if device in free]


def makespan(jobs: Sequence[J], devices: int) -> float:
    """Time from the first start to the last end when the pool's own rule places `jobs` in this order.

    In the unit of `job.cost`. No job may be wider than the pool.
    """
    pool = Devices([str(k) for k in range(devices)])
    waiting = list(jobs)
    running: list[tuple[float, int, J, list[str]]] = []
    now = 0.0
    while waiting or running:
        while (job := pool.next(waiting)) is not None:
            waiting = [other for other in waiting if other is not job]
            heapq.heappush(running, (now + job.cost, len(waiting), job, pool.take(job)))
        now, _, job, ids = heapq.heappop(running)
        pool.give(job, ids)
    return now


def ideal_makespan(jobs: Sequence[J], devices: int) -> float:
    """No schedule is shorter: the work spread evenly, or the longest run if that is longer."""
    return max(sum(job.cost * job.devices for job in jobs) / devices, max(job.cost for job in jobs))
