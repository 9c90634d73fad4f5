"""From a trained supernet to one architecture, by trying its members instead of trusting its probabilities.

Gates tell well what is cheap and, after a short search, less well what is good: the most probable operation of each
edge is often the cheapest of near equals. So members are drawn from the gates, each is run with the supernet's
weights on the same new texts, and the one whose loss and cost are least is kept (Guo et al. 2020, single-path one-shot;
Wang et al. 2021, who show that a gate's size tells little of an operation's worth).

Under a constraint only members within the target are compared, and of these first those that use it: a supernet's
short training flatters what is small, and the target is what the user is willing to spend. Where members can be
measured the winner is: what it really takes mends the predictions, and the choice is made again until it fits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from adasearch.architecture import Architecture
from adasearch.comparison import comparison_texts, member_loss
from adasearch.progress import Progress
from adasearch.shrink import fastest_member, random_architecture, shrink
from adasearch.supernet import Supernet
from adasearch.tokens import Examples

if TYPE_CHECKING:
    from adasearch.search_method import SearchMethod

USED = 0.95  # of a target, that a member should use: it may be met within 5%
DRAWS = 40  # from the gates for each candidate, in search of members between USED and the target; as many at random
MEASURED = 8  # winners measured at most: predictions are off by some hundredths, and each has a chance of its own to fit

Measure = Callable[[Architecture], float]  # milliseconds that a member really takes


@dataclass(frozen=True)
class Derived:
    """The architecture that a search chose and, where the strategy finds one, a whole Pareto front.

    ``front`` makes plain data of it, in which the architecture that is taken in the end, perhaps another finalist, is marked. ``losses`` are those of all members that were compared, the price of their cost included where there is one.
    """

    architecture: Architecture
    front: Callable[[Architecture], dict[str, Any]] | None = None
    losses: Mapping[Architecture, float] = field(default_factory=dict)


def derive(
    supernet: Supernet, method: SearchMethod, examples: Examples, seed: int, progress: Progress, measure: Measure | None = None
) -> Derived:
    """The best of the decided member and ``method.config.candidates`` drawn ones, on ``comparison_texts`` of ``examples``.

    ``examples`` are texts that the supernet has not learned from. It is left as it was. A pure function of weights, examples,
    seed and what ``measure`` finds.
    """
    decided = supernet.decide(seed)
    is_argmax, constrained = method.config.derive == "argmax", method.config.is_constrained
    if is_argmax and not constrained:
        return Derived(decided)
    generator = np.random.default_rng((seed, 0xDE22))
    texts = comparison_texts(examples, seed)
    losses: dict[Architecture, float] = {}

    def best_of(members: list[Architecture]) -> Architecture:
        members = list(dict.fromkeys(members))
        progress.stage("compare members", len(members))
        for done, member in enumerate(members, start=1):
            if member not in losses:
                losses[member] = member_loss(shrink(supernet, member), method, texts)
                losses[member] += method.member_penalty(member)
            progress.step(done, loss=losses[member], best=min(losses[known] for known in members[:done]))
        return min(members, key=losses.__getitem__)

    if not constrained:
        return Derived(best_of([decided, *(supernet.sample(generator, seed) for _ in range(method.config.candidates))]), losses=losses)

    def choose(factor: float, tried: Collection[Architecture] = ()) -> Architecture | None:
        if is_argmax and not tried:
            if method.budget_used(decided) <= 1:
                return decided
            progress.warning("search.derive: the most probable member misses the target; members within it are compared instead")
        members = [member for member in _within(supernet, method, factor, generator, seed) if member not in tried]
        return best_of(members) if members else None

    member = choose(1.0)
    assert member is not None, "a space has members"
    if method.config.latency_target_ms and measure is not None:
        member = measured(member, choose, method, measure, progress, 0.0 if is_argmax else USED)
    used = method.budget_used(member, 0.0 if measure is not None else 1.0)  # a measured latency has had its say
    if used > 1:
        progress.warning(f"search: no member within the target was found; the nearest takes {used:.3g} times it")
    return Derived(member, losses=losses)


def finalists(derived: Derived, method: SearchMethod, measure: Measure | None = None) -> list[Architecture]:
    """The chosen member, the best of every other depth, and the best of the rest by loss, ``method.config.finalists`` in all, none beyond
    a target. Where members can be measured they are, for a latency target.

    A supernet ranks members of one depth. Of different depths it prefers what learns fast, which is seldom what learns most: of that the
    play-off's own trainings know more.
    """
    config, found = method.config, [derived.architecture]
    ranked = sorted(derived.losses, key=derived.losses.__getitem__)

    @functools.cache
    def fits(member: Architecture) -> bool:
        # a latency that can be measured is not predicted: the prediction may be off for all of them
        if config.is_constrained and method.budget_used(member, 1.0 if measure is None else 0.0) > 1:
            return False
        return not config.latency_target_ms or measure is None or measure(member) <= config.latency_target_ms

    for is_open in (lambda member: member.depth not in {other.depth for other in found}, lambda member: member not in found):
        for member in ranked:
            if len(found) < config.finalists and is_open(member) and fits(member):
                found.append(member)
    return found


def _within(supernet: Supernet, method: SearchMethod, factor: float, generator: np.random.Generator, seed: int) -> list[Architecture]:
    """Members within the target, at most ``candidates``: those that use it, half of them drawn from the gates, the rest at random.

    What the gates like may lie far below the target, and those few of theirs that use it are alike in what they are not sure of.
    Where there are few at all also the dearest below; the cheapest of all where none is within.
    """
    count = method.config.candidates
    used: dict[Architecture, float] = {}

    def add(member: Architecture) -> bool:
        used[member] = method.budget_used(member, factor)
        return USED <= used[member] <= 1

    few = max(1, count // 4)
    found = int(add(supernet.decide(seed)))
    for draw, enough in ((supernet.sample, math.ceil(count / 2)), (functools.partial(random_architecture, supernet.space), count)):
        for _ in range(DRAWS * count):
            if found >= enough:
                break
            member = draw(generator, seed)
            if member not in used:
                found += add(member)
    chosen = [member for member, share in used.items() if USED <= share <= 1]
    if found >= few:
        return chosen
    if method.config.latency_target_ms:
        add(fastest_member(supernet.space, method.latency, seed))
    below = sorted((member for member, share in used.items() if share < USED), key=used.__getitem__, reverse=True)
    return (chosen + below)[:few] or [min(used, key=used.__getitem__)]


def best_within(
    losses: Mapping[Architecture, float], method: SearchMethod, progress: Progress, measure: Measure | None = None
) -> Architecture:
    """Of members that were weighed, under a constraint: the least loss within the target, measured where it is a latency.

    Where none is within, the one that comes nearest to it, with a warning.
    """

    def choose(factor: float, tried: Collection[Architecture] = ()) -> Architecture | None:
        within = [member for member in losses if member not in tried and method.budget_used(member, factor) <= 1]
        return min(within, key=losses.__getitem__, default=None)

    chosen = choose(1.0)
    if chosen is not None and method.config.latency_target_ms and measure is not None:
        chosen = measured(chosen, choose, method, measure, progress, USED)
    if chosen is None:
        chosen = min(losses, key=method.budget_used)
        progress.warning(f"search: no member within the target was found; the nearest takes {method.budget_used(chosen):.3g} times it")
    return chosen


def measured(
    member: Architecture | None,
    choose: Callable[[float, Collection[Architecture]], Architecture | None],
    method: SearchMethod,
    measure: Measure,
    progress: Progress,
    least: float,
) -> Architecture:
    """A member that takes at least the share ``least`` of the latency target when it is measured, and no more than it.

    It is chosen again with mended predictions until one does, among those that were not measured yet. A chosen member of which less
    than that share is expected is taken as it is: another target holds it back, or the space has nothing slower to offer.
    """
    target = method.config.latency_target_ms
    taken: dict[Architecture, float] = {}
    factor = 1.0
    while member is not None and len(taken) < MEASURED:
        taken[member] = measure(member)
        predicted = method.latency.predict(member)
        progress.message(f"derived member: predicted {predicted:.4g} ms, measured {taken[member]:.4g} ms; target {target:.4g} ms")
        wanted = least * target if factor * predicted >= least * target else 0.0
        if wanted <= taken[member] <= target:
            return member
        factor = float(np.median([ms / method.latency.predict(known) for known, ms in taken.items()]))
        member = choose(factor, taken)
    met = [known for known, ms in taken.items() if ms <= target]
    if met:  # none uses the target to the full: the one that comes nearest to it
        return max(met, key=taken.__getitem__)
    nearest = min(taken, key=taken.__getitem__)
    progress.warning(
        f"search.latency_target_ms: {target:.4g} ms is missed by every member that was measured; the nearest takes {taken[nearest]:.4g} ms"
    )
    return nearest
