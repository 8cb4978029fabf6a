"""Networks that learn from the same rows, each by a team of the processes that train.

Half of the processes train a network on all rows in less time than all of them train two networks,
one after the other, on their shares: half a minibatch costs more than half of one, and every
process takes every step of an optimiser.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Generic, NamedTuple, TypeVar

import torch

from rlhf_core import processes
from rlhf_core.errors import DivergedError
from rlhf_core.trainers.loop import Optimization
from rlhf_core.trainers.parallel import side_by_side
from rlhf_core.trainers.state import load_optimizer_tensors, optimizer_tensors

Result = TypeVar("Result")
Layout = dict[str, tuple[torch.Size, torch.dtype]]

MAX_IMBALANCE = 4 / 3
"""How much more than an even part of the work a team may have, for which the others wait. With two
processes it allows a network that is twice as large as the other."""


class _Ended(NamedTuple, Generic[Result]):
    """What a process tells the others when its team is done."""

    outcome: Result | DivergedError
    steps: int
    """Of the optimiser, since it began."""
    state: Layout
    """Of the optimiser's tensors."""


class Networks:
    """Networks with an optimiser each, and updates that write no tensor of another's."""

    def __init__(self, *networks: Optimization) -> None:
        self._networks = networks

    def update(self, *tasks: Callable[[], Result], threads: bool = True) -> list[Result]:
        """Run the update of each network; every process ends with what all of them wrote.

        Several processes divide themselves into teams, one for each network, unless layers are
        divided or a team would wait long for another; then, and in one process, the tasks run as
        ``side_by_side`` runs them.

        Args:
            tasks: one for each network; what they return is pickled. A ``DivergedError`` has to be
                raised alike in every process of a team.
            threads: whether one process may run them in threads.

        Returns:
            The tasks' results in their order, the same on every process.

        Raises:
            DivergedError: a task's, the first one's where there are several; on every process.
            PeerLostError: a process is gone; so it is where a task raised anything else.
        """
        if not self._teams:
            return side_by_side(*tasks, allowed=threads)
        everyone, *teams = self._teams
        place = next(at for at, team in enumerate(teams) if processes.rank() in team.members)
        with processes.in_team(teams[place]):
            own = _ended(tasks[place], self._networks[place])
        with processes.in_team(everyone):
            told = processes.all_gather_object(own)
        results = [_result(told[team.members[0]]) for team in teams]
        for team, network in zip(teams, self._networks, strict=True):
            src = team.members[0]
            _broadcast_state(network, told[src], src)
        return results

    @cached_property
    def _teams(self) -> Sequence[processes.Team]:
        """All processes, and a team for each network; none where every process trains each.

        All of them have the patience of a team: to hear of each other takes as long as an update.
        """
        if any(network.divided for network in self._networks):
            return ()
        loads = [
            sum(weight.numel() for weight in network.model.parameters())
            for network in self._networks
        ]
        sizes = team_sizes(loads, processes.size())
        if not sizes:
            return ()
        parts = pairwise(accumulate(sizes, initial=0))
        members = [range(processes.size()), *(range(*part) for part in parts)]
        return [processes.Team.of(part) for part in members]


def team_sizes(loads: Sequence[float], num_processes: int) -> list[int]:
    """Divide processes in proportion to ``loads``, at least one for each.

    Returns:
        Processes for each load; none where there are too few, or one would take longer than
        ``MAX_IMBALANCE`` times an even part.
    """
    sizes = [1] * len(loads)
    for _ in range(num_processes - len(loads)):
        longest = max(range(len(loads)), key=lambda at: loads[at] / sizes[at])
        sizes[longest] += 1
    part = max(load / size for load, size in zip(loads, sizes, strict=True))
    fits = len(loads) <= num_processes and part * num_processes <= MAX_IMBALANCE * sum(loads)
    return sizes if fits else []


def _ended(task: Callable[[], Result], network: Optimization) -> _Ended[Result]:
    outcome: Result | DivergedError
    try:
        outcome = task()
    except DivergedError as error:  # the other teams have to hear of it
        outcome = error
    return _Ended(outcome, network.step, _layout(network.optimizer))


def _result(ended: _Ended[Result]) -> Result:
    if isinstance(ended.outcome, DivergedError):
        raise ended.outcome
    return ended.outcome


def _layout(optimizer: torch.optim.Optimizer) -> Layout:
    state = optimizer_tensors(optimizer)
    return {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}


def _broadcast_state(network: Optimization, ended: _Ended[Result], src: int) -> None:
    """Make a network on every process what it is on process ``src``: weights, moments, steps."""
    network.step = ended.steps
    if _layout(network.optimizer) != ended.state:  # it has taken no step here yet
        blank = {
            name: torch.zeros(shape, dtype=kind) for name, (shape, kind) in ended.state.items()
        }
        load_optimizer_tensors(network.optimizer, blank)
    state = optimizer_tensors(network.optimizer)
    processes.broadcast(src, [*network.parameters, *(state[name] for name in ended.state)])
