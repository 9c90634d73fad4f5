"""A sweep's settings, and the runs they mean: tasks x teachers x budgets x strategies x seeds, or runs written out one by one."""

from __future__ import annotations

import dataclasses
import itertools
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adasearch.bench_config import BenchConfig
from adasearch.config import RunConfig
from adasearch.errors import ConfigError
from adasearch.files import fingerprint
from adasearch.fit_config import DistillConfig, RetrainConfig
from adasearch.search_config import SearchConfig, without_latency
from adasearch.settings import check_choice, check_optional, check_range, check_seeds, part_of, to_dict

ENGINES = ("local", "ray")
BUDGETS = ("latency_target_ms", "target_macs", "target_params", "beta")  # of the sweep, and of ``search``
OF_THE_SWEEP = ("output_dir", "threads", "quiet")  # settings that no run has for itself
# what the teacher, its texts and its labels do not depend on: runs that differ here alone share them
AFTER_PREPARATION: dict[str, Any] = {
    "space": "adasearch", "architecture": None, "warm_start": None, "controls": [], "seeds": None, "search": SearchConfig(), "distill": DistillConfig(),
    "retrain": RetrainConfig(), "bench": BenchConfig(), "report_to": "none",
}  # fmt: skip


@dataclass
class SweepConfig(RunConfig):
    """Many runs that share teachers, with one table at the end.

    The settings of `adasearch run` are those of every run, but for what is listed here.

    Args:
        tasks: tasks, each as in ``task``; that one alone when empty.
        teachers: teachers, each as in ``teacher``; that one alone when empty.
        latency_target_ms: a run for each, with this search.latency_target_ms.
        target_macs: a run for each, with this search.target_macs.
        target_params: a run for each, with this search.target_params.
        beta: a run for each, with this search.beta.
        strategies: search strategies, each as in ``search.strategy``; that one alone when empty.
        seeds: a run for each, search and student alike; ``seed`` alone when absent.
        runs: runs written out, each a mapping of settings of `adasearch run` that differ, and ``name``; alone, or beside the
            product of the lists above where ``tasks`` has any. The lists do not multiply them.
        output_dir: folder of the sweep; ``runs/sweep`` when absent.
        workers: runs at a time on this machine; as many as the cores allow with ``threads`` each when absent.
        threads: threads of each run; the cores divided by the workers when absent.
        retries: how often a run is started again after its process was lost.
        engine: local (processes on this machine) or ray.
        address: with ray: of the cluster; auto finds a running one, local starts one on this machine.
        formats: of the table: md, csv, latex, png.
    """

    tasks: list[str] = field(default_factory=list)
    teachers: list[str] = field(default_factory=list)
    latency_target_ms: list[float] = field(default_factory=list)
    target_macs: list[float] = field(default_factory=list)
    target_params: list[float] = field(default_factory=list)
    beta: list[float] = field(default_factory=list)
    strategies: list[str] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    workers: int | None = None
    retries: int = 2
    engine: str = "local"
    address: str = "auto"
    formats: list[str] = field(default_factory=lambda: ["md", "csv", "latex", "png"])

    @property
    def folder(self) -> Path:
        """Where the sweep lies."""
        return Path(self.output_dir or Path("runs") / "sweep")

    @property
    def base(self) -> RunConfig:
        """What all runs have in common; one value for what comes before the search, so that it can be shared."""
        return part_of(RunConfig, self, seeds=None, data_seed=self.seed_of_data, quiet=True)


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep. ``prepared`` is the name of the preparation it needs."""

    name: str
    config: RunConfig
    prepared: str

    @property
    def budget(self) -> str:
        """What its search may spend, as text."""
        search = self.config.search
        if search.latency_target_ms is not None:
            return f"{search.latency_target_ms:g} ms"
        if not search.is_constrained:
            return f"beta {search.beta:g}"
        spent = ((search.target_macs, "MACs"), (search.target_params, "parameters"))
        return ", ".join(f"{_short(value)} {unit}" for value, unit in spent if value)


def check_sweep(config: SweepConfig, cores: int) -> tuple[int, int]:
    """Workers and threads each, on a machine of so many cores. Raises ``ConfigError`` for what can be wrong by itself."""
    check_choice("engine", config.engine, ENGINES)
    check_range("retries", config.retries, 0, 100)
    check_seeds("seeds", config.seeds)
    for name in ("workers", "threads"):
        check_optional(name, getattr(config, name), 1, 1 << 16)
    if len(config.tasks) > 1 and (config.train_file or config.architecture):
        name = "train_file" if config.train_file else "architecture"
        raise ConfigError(f"tasks: {' '.join(config.tasks)}: {name} is one task's; choices: one task, or a {name} for each in `runs` of a --config file")
    threads = config.threads or max(1, cores // (config.workers or cores))
    workers = config.workers or max(1, cores // threads)
    if config.engine == "local" and workers * threads > cores:
        raise ConfigError(
            f"workers, threads: {workers} workers of {threads} threads are {workers * threads} on {cores} cores;"
            f" choices: a product of {cores} or less"
        )
    if not (config.tasks or config.runs or config.train_file or config.data_dir) and config.task == SweepConfig.task:
        raise ConfigError("tasks: none named; choices: --tasks sst2 mrpc ..., --train_file FILE, or `runs` in a --config file")
    return workers, threads


def plan(config: SweepConfig) -> list[SweepRun]:
    """Every run of the sweep, its folder named. Raises ``ConfigError`` for settings that do not exist or have no effect, and equal names."""
    _check_lists(config)
    found: list[tuple[str, RunConfig]] = []
    if config.tasks or not config.runs:
        found += _product(config)
    for index, changes in enumerate(config.runs):
        where = f"runs[{index}]"
        if not isinstance(changes, Mapping):
            raise ConfigError(f"{where}: {changes!r} is no mapping of settings")
        if own := [key for key in OF_THE_SWEEP if key in changes]:
            raise ConfigError(f"{where}: {', '.join(own)}: the sweep's, for all its runs; choices: --{own[0]} of the sweep, or leave it out")
        changed = override(config.base, {key: value for key, value in changes.items() if key != "name"}, where)
        found.append((str(changes.get("name", f"{_slug(changed.task)}-{index + 1}")), changed))
    runs: dict[str, SweepRun] = {}
    for name, run in found:
        if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
            raise ConfigError(f"runs: name {name!r} is no name of a folder; choices: letters, digits, and . _ + - behind the first")
        if name in runs:
            raise ConfigError(f"runs: two runs are named {name!r}; choices: values that differ, or a `name` for each of `runs`")
        runs[name] = SweepRun(name, dataclasses.replace(run, output_dir=str(config.folder / "runs" / name)), preparation_name(run))
    return [*runs.values()]


def _check_lists(config: SweepConfig) -> None:
    """Lists are of a product, and there is none where runs are written out and no ``tasks`` are: better refused than ignored.

    So is what a search may spend, and how it searches, where the architecture is given.
    """
    if config.architecture and (given := [name for name in (*BUDGETS, "strategies") if getattr(config, name)]):
        raise ConfigError(f"{', '.join(given)}: nothing is searched with an --architecture; choices: one of the two")
    if config.tasks or not config.runs:
        return
    if given := [name for name in ("teachers", *BUDGETS, "strategies", "seeds") if getattr(config, name)]:
        names = {"teachers": "teacher", "seeds": "seed", "strategies": "search.strategy"}
        single = [names.get(name, f"search.{name}") for name in given]
        raise ConfigError(
            f"{', '.join(given)}: `runs` alone has no product for {'it' if len(given) == 1 else 'them'};"
            f" choices: --tasks for a product beside `runs`, or {', '.join(single)} in each of `runs`"
        )


def _product(config: SweepConfig) -> Iterator[tuple[str, RunConfig]]:
    """Tasks x teachers x budgets x strategies x seeds, named after them."""
    budgets = [(kind, value) for kind in BUDGETS for value in getattr(config, kind)] or [(None, None)]
    seeds = [config.seed] if config.seeds is None else config.seeds
    strategies = config.strategies or [None]
    for task, teacher, (kind, value), strategy, seed in itertools.product(
        config.tasks or [config.task], config.teachers or [config.teacher], budgets, strategies, seeds
    ):
        search = config.search if strategy is None else dataclasses.replace(config.search, strategy=strategy)
        if kind == "beta":  # a weight is a budget where no target is one
            search = dataclasses.replace(search, target_macs=None, target_params=None, latency_target_ms=None)
        if config.latency_target_ms and kind != "latency_target_ms" and search.latency_target_ms is None:
            search = without_latency(search)  # what a target in milliseconds is for is of the other runs
        if kind is not None:
            efficiency = {"target_macs": "constraint", "target_params": "constraint", "beta": "penalty"}
            search = dataclasses.replace(search, **{kind: value, "efficiency": efficiency.get(kind, search.efficiency)})
        budget = [] if kind is None else [f"{kind.removeprefix('target_').removesuffix('_target_ms')}{_short(value)}"]
        how = [] if strategy is None else [strategy]
        name = "-".join([_slug(task), _slug(teacher), *budget, *how, f"seed{seed}"])
        yield name, dataclasses.replace(config.base, task=task, teacher=teacher, search=search, seed=seed)


def preparation(run: RunConfig, folder: Path) -> RunConfig:
    """The run that makes what ``run`` shares with its like: teacher, texts, labels."""
    name = preparation_name(run)
    shared = {**AFTER_PREPARATION, "seed": run.seed_of_data, "output_dir": str(folder / "prepared" / name)}
    return dataclasses.replace(run, **shared)


def table_run(run: RunConfig, folder: Path) -> RunConfig | None:
    """The run that measures the latency table of ``run``'s search and its like; None where that search measures none, or has one."""
    own = Path(run.output_dir) / "search"
    has_one = run.architecture or run.search.latency_table or any((own / name).exists() for name in ("latency.json", "architecture.json"))
    if run.search.latency_target_ms is None or has_one:
        return None
    asked = {name: getattr(run.search, name) for name in ("latency_threads", "latency_batch_size", "latency_lengths", "latency_runtime")}
    name = f"{preparation_name(run)}-{fingerprint([run.space], asked)[:8]}"
    search = SearchConfig(latency_target_ms=1.0, **asked)  # whatever the targets are, the table is the same
    return dataclasses.replace(preparation(run, folder), space=run.space, search=search, output_dir=str(folder / "tables" / name))


def preparation_name(run: RunConfig) -> str:
    """Equal for runs that can share a preparation: task, teacher, and a fingerprint of all that it depends on."""
    free = ("output_dir", "seed", "threads", "evaluate", "checkpoint_seconds", "quiet", "report_examples", *AFTER_PREPARATION)
    settings = {key: value for key, value in to_dict(run).items() if key not in free}
    return f"{_slug(run.task)}-{_slug(run.teacher)}-{fingerprint(settings)[:8]}"


def override(config: Any, changes: Mapping[str, Any], where: str) -> Any:
    """A copy of a settings' dataclass with some changed, nested or with dots. Raises ``ConfigError`` with the place."""
    hints, nested = typing.get_type_hints(type(config)), {}
    for key, value in changes.items():
        first, _, rest = str(key).partition(".")
        if first not in hints:
            raise ConfigError(f"{where}: unknown setting {first!r}; choices: {', '.join(hints)}")
        old = getattr(config, first)
        if dataclasses.is_dataclass(old):
            inner = {rest: value} if rest else value
            if not isinstance(inner, Mapping):
                raise ConfigError(f"{where}.{first}: {value!r} does not fit; expected a mapping of settings")
            nested[first] = override(nested.get(first, old), inner, f"{where}.{first}")
        elif rest or not _fits(value, hints[first]):
            raise ConfigError(f"{where}.{key}: {value!r} does not fit; expected {hints[first]}")
        else:
            nested[first] = value
    return dataclasses.replace(config, **nested)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value read from YAML is of a setting's type; a whole number is also a float, true is no number."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in inner)
    if origin is list:
        return isinstance(value, Sequence) and not isinstance(value, str) and all(_fits(item, inner[0]) for item in value)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


def _slug(name: str) -> str:
    """The end of a name or path, as a part of a folder's name."""
    return re.sub(r"[^\w.]+", "_", name.rstrip("/").rsplit("/", 1)[-1]).strip(".") or "_"


def _short(value: float) -> str:
    """``3e6``, ``0.5``, ``4``."""
    return re.sub(r"e\+0*", "e", f"{value:g}")
