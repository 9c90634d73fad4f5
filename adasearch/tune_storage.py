"""Where a study's trials are kept, and who works on them: storages, workers that die, trials that are taken up again.

A worker holds a lock on ``workers/<id>.lock`` of the study's folder for as long as it lives, and writes the time into its
running trial. A trial is lost when its worker's lock can be had; where no lock is to be seen (a worker on another machine
with a folder of its own), when its heart has not beaten for ``GRACE_SECONDS``.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from adasearch.errors import ConfigError
from adasearch.files import read_json, write_json
from adasearch.metrics import METRICS
from adasearch.run_files import completed, differences
from adasearch.tune_config import TuneConfig

JOURNAL = "journal.log"
POPULATION = 10  # of NSGA-II, in trials that came to their end: Optuna's 50 would make a whole study of 40 its first, random generation
SCHEMES = ("postgresql", "mysql", "mariadb", "sqlite")
BEAT_SECONDS, GRACE_SECONDS = 20.0, 180.0  # the clocks of several machines may differ by a minute or two
TRIES_TO_OPEN = 3  # two machines that create a database's tables at once: one of them is refused, and finds them then


def open_storage(config: TuneConfig) -> BaseStorage:
    """The journal in the study's folder, or the database of ``config.storage``.

    Raises ``ConfigError`` for a URL of no known kind, a driver that is not installed, a database that cannot be reached.
    """
    logging.getLogger("optuna").setLevel(logging.WARNING)
    if config.storage is None:
        config.folder.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(config.folder / JOURNAL)))
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError

    choices = f"choices: {', '.join(f'{scheme}://...' for scheme in SCHEMES)}, or leave it out for a journal in the study's folder"
    try:
        url = make_url(config.storage)
    except ArgumentError as error:
        raise ConfigError(f"storage: {config.storage!r} is no URL; {choices}") from error
    shown = url.render_as_string(hide_password=True)
    scheme, _, driver = url.drivername.partition("+")
    if scheme not in SCHEMES:
        raise ConfigError(f"storage: {shown}: unknown kind {scheme!r}; {choices}")
    if scheme == "postgresql" and not driver:
        url = url.set(drivername="postgresql+psycopg")
    for attempt in range(1, TRIES_TO_OPEN + 1):
        try:
            return RDBStorage(url.render_as_string(hide_password=False), engine_kwargs={"pool_pre_ping": True})
        except ImportError as error:
            raise ConfigError(f"storage: {shown}: its driver is not installed ({error}); pip install 'adasearch[postgresql]' for PostgreSQL") from error
        except SQLAlchemyError as error:
            if attempt == TRIES_TO_OPEN or isinstance(error, OperationalError):  # not reached, or not let in
                cause = " ".join(str(getattr(error, "orig", None) or error).split())
                raise ConfigError(f"storage: {shown} cannot be used ({cause[:300]}); choices: start the server, correct the URL") from error
            time.sleep(0.5 * attempt)
    raise AssertionError("the loop returns or raises")


def directions_of(config: TuneConfig, metric: str) -> list[str]:
    """maximize or minimize, for each objective."""
    is_higher_better = METRICS[metric].higher_is_better
    return ["maximize" if name == "score" and is_higher_better else "minimize" for name in config.objectives]


def create_study(
    config: TuneConfig, storage: BaseStorage, metric: str, first: dict[str, object], data: dict[str, Any] | None = None,
    inputs: dict[str, str] | None = None,
) -> optuna.Study:  # fmt: skip
    """The study, new or as far as it has come; a new one begins with the labels ``first`` and notes its ``data`` (of a ``Task``) and the
    digests of its ``inputs``.

    Raises ``ConfigError`` where folder or storage holds a study with other settings.
    """
    lasting = config.lasting()
    path = config.folder / "study.json"
    if path.exists():
        _check_same(read_json(path), lasting, f"output_dir: {config.folder}", "another --output_dir, or delete it")
    held = optuna.get_all_study_names(storage) if config.storage is None else []
    if held and config.name not in held:  # a folder that was moved: a second study would write over the first one's trials
        raise ConfigError(
            f"study_name: {config.folder} holds the study {held[0]!r}, not {config.name!r}; choices: --study_name {held[0]}, or another --output_dir"
        )
    study = optuna.create_study(storage=storage, study_name=config.name, directions=directions_of(config, metric), load_if_exists=True)
    known = study.user_attrs.get("settings")
    if known is not None:
        _check_same(known, lasting, f"study_name: {config.name!r} in the storage", "another --study_name, or these settings")
    else:
        if not all(trial.user_attrs.get("is_first") for trial in study.get_trials(deepcopy=False)):  # ours, if a kill came between
            raise ConfigError(f"study_name: {config.name!r} in the storage is a study of another program; choices: another --study_name")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(config.objectives))  # what optuna-dashboard calls them
        if first:
            study.enqueue_trial(first, user_attrs={"is_first": True}, skip_if_exists=True)
        study.set_user_attr("settings", lasting)  # last: they say that all of this is there
    if not path.exists():
        write_json(path, {**lasting, "data": data, "inputs": inputs})
    return study


def load_study(config: TuneConfig) -> optuna.Study:
    """The study as a worker sees it, with its sampler and pruner."""
    samplers = {
        "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, constant_liar=True),  # running trials count as bad: others look elsewhere
        "nsgaii": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=POPULATION),
        "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    }
    kind = config.pruner if config.pruner != "auto" else "median" if config.has_one_objective else "dominated"
    pruners = {
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=round(config.prune_warmup * config.evaluations)),
        "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=max(1, round(config.prune_warmup * config.evaluations))),
    }
    pruner = pruners.get(kind, optuna.pruners.NopPruner)()
    sampler = NumberedSampler(samplers[config.sampler], config.seed)
    return optuna.load_study(study_name=config.name, storage=open_storage(config), sampler=sampler, pruner=pruner)


class NumberedSampler(optuna.samplers.BaseSampler):
    """A sampler whose random numbers are those of the study's seed and the trial's number, which storage gives out once.

    So no two workers draw the same, on however many machines, and a study that goes on draws what it would have drawn. The samplers
    of optuna hold nothing else: what they learn they read from the study.

    Args:
        make: a sampler from a seed.
        seed: the study's.
    """

    def __init__(self, make: Callable[[int], optuna.samplers.BaseSampler], seed: int):
        self._make, self._seed = make, seed
        self._sampler = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Begin the trial's random numbers."""
        self._sampler = self._make((self._seed + 10_007 * trial.number) % 2**32)
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the sampler's."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """As the sampler's."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """As the sampler's."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """As the sampler's."""
        self._sampler.after_trial(study, trial, state, values)


class Worker:
    """One process at work on a study, for as long as the ``with`` lasts. Its id is random: it names no machine."""

    def __init__(self, folder: Path):
        self.id = uuid.uuid4().hex[:12]
        self._path = folder / "workers" / f"{self.id}.lock"
        self._lock = FileLock(self._path)

    def __enter__(self) -> Worker:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._lock.release()
        if kind is None or issubclass(kind, Exception):  # after Ctrl-C the free lock says at once that the trial is lost
            self._path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def beating(self, trial: Trial) -> Iterator[None]:
        """Write the time into the trial now and every ``BEAT_SECONDS``, from a thread."""
        trial.set_user_attr("worker", self.id)
        stop = threading.Event()

        def beat() -> None:
            while True:
                with contextlib.suppress(optuna.exceptions.OptunaError, KeyError):  # given up on by others, or gone
                    trial.set_user_attr("heartbeat", time.time())
                if stop.wait(BEAT_SECONDS):
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def is_lost(trial: FrozenTrial, folder: Path, now: float | None = None) -> bool:
    """Whether a running trial has no living worker."""
    path = folder / "workers" / f"{trial.user_attrs.get('worker', '')}.lock"
    if path.is_file():
        try:
            with FileLock(path, timeout=0):
                path.unlink(missing_ok=True)
                return True
        except Timeout:
            return False
    began = trial.datetime_start or datetime.now()
    beat = trial.user_attrs.get("heartbeat", began.timestamp())
    return (time.time() if now is None else now) - beat > GRACE_SECONDS


def release_lost(study: optuna.Study, storage: BaseStorage, config: TuneConfig) -> list[int]:
    """Mark running trials without a worker as failed and put them in line again: ``config.retries`` times at most, interrupted ones always."""
    released = []
    study_id = storage.get_study_id_from_name(config.name)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not is_lost(trial, config.folder):
            continue
        is_interrupted = trial.user_attrs.get("is_interrupted", False)
        tries = trial.user_attrs.get("tries", 0) + (not is_interrupted)
        is_again = is_interrupted or tries <= config.retries
        try:
            trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
            why = "interrupted" if is_interrupted else "its worker was lost" + ("" if is_again else f", {tries} times")
            storage.set_trial_user_attr(trial_id, "reason", why)
            storage.set_trial_user_attr(trial_id, "is_replaced", is_again)
            study.tell(trial.number, state=TrialState.FAIL)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):  # finished, or released by another machine, in between
            continue
        values = trial.params or trial.system_attrs.get("fixed_params")  # of a trial that waited, and was lost before it drew them
        if is_again and values:
            kept = {key: trial.user_attrs[key] for key in ("is_first",) if key in trial.user_attrs}
            study.enqueue_trial(values, user_attrs={**kept, "tries": tries, "retry_of": trial.number})
        released.append(trial.number)
    return released


def counted(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that count: all but those that were replaced by another."""
    return [trial for trial in trials if not trial.user_attrs.get("is_replaced")]


def next_trial(study: optuna.Study, n_trials: int) -> Trial | None:
    """A trial to work on, those that wait first; None when there are ``n_trials``, running ones included."""
    trials = counted(study.get_trials(deepcopy=False))
    is_waiting = any(trial.state == TrialState.WAITING for trial in trials)
    if len(trials) >= n_trials and not is_waiting:
        return None
    trial = study.ask()
    # two workers that saw the last free place at once: the later one gives it up
    before = [other for other in counted(study.get_trials(deepcopy=False)) if other.number < trial.number]
    if len(before) >= n_trials and not _was_enqueued(study, trial):
        trial.set_user_attr("is_replaced", True)
        trial.set_user_attr("reason", "one more than asked for: another worker was faster")
        study.tell(trial, state=TrialState.FAIL)
        return None
    return trial


def _was_enqueued(study: optuna.Study, trial: Trial) -> bool:
    return "tries" in trial.user_attrs or "is_first" in trial.user_attrs


def _check_same(before: dict, now: dict, where: str, choices: str) -> None:
    known = completed(before, TuneConfig().lasting())  # a version that knew fewer settings had the others at their defaults
    if what := differences(known, now):
        raise ConfigError(f"{where} holds a study with other settings ({what}); choices: {choices}")
