"""The strategies of search by name: all of ours are registered by importing this module."""

from __future__ import annotations

from accelerate import PartialState

from adasearch.errors import ConfigError
from adasearch.methods import adabert, darts, gdas, nni_search, one_shot, proxyless  # noqa: F401 (they register themselves)
from adasearch.search_config import SearchConfig
from adasearch.search_method import STRATEGIES, SearchMethod
from adasearch.settings import check_choice


def find_strategy(config: SearchConfig) -> type[SearchMethod]:
    """The strategy that ``search.strategy`` names. Raises ``ConfigError`` where there is none, or its settings do not suit it."""
    check_choice("search.strategy", config.strategy, tuple(STRATEGIES))
    strategy = STRATEGIES[config.strategy]
    strategy.check(config)
    are_many = PartialState._shared_state and PartialState().num_processes > 1
    if strategy.one_process and are_many:
        raise ConfigError(
            f"search.strategy: {config.strategy!r} trains in one process; choices: start it without torchrun, or another strategy"
        )
    if config.finalists > 1 and are_many:
        raise ConfigError(f"search.finalists: {config.finalists} are trained by one process alone; choices: 1, or no torchrun")
    return strategy


def remark(config: SearchConfig) -> str | None:
    """What is to be said of settings that work but are not as published; None of others."""
    published = STRATEGIES[config.strategy].published_mode
    if published is None or config.mode == published:
        return None
    return f"search.strategy {config.strategy} in {config.mode} mode; as published it is {published} (search.mode)"
