"""``adasearch tune``: a study of runs by Optuna, over a few settings, for score and cost at once.

The preparation is made once, before the first trial. Then workers take trials from the storage until there are as many
as asked for: one worker in this process, several in processes of their own, further ones on other machines by the same
command. Whoever is killed loses the trial at hand; it is noticed and the trial is run again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from adasearch.errors import AdasearchError, TrainingError
from adasearch.operations import Operation
from adasearch.progress import Progress
from adasearch.run_files import check_folder, refuse_processes
from adasearch.tune_check import check_request
from adasearch.tune_config import TuneConfig, check_study
from adasearch.tune_report import describe, write_outputs
from adasearch.tune_storage import JOURNAL, Worker, counted, create_study, load_study, next_trial, open_storage, release_lost
from adasearch.tune_trial import PREPARING, Pruned, Study, open_study, run_trial
from adasearch.user_code import code_for_workers, import_once

POLL_SECONDS = 0.5
OPEN = (TrialState.RUNNING, TrialState.WAITING)
TAKEN_OVER = "trial {}: another worker took it over; its result is not used"


def tune(config: TuneConfig, progress: Progress | None = None) -> Path:
    """Run the study until it has ``config.n_trials`` trials; returns its folder with best.yaml or front/, tune.md, figures/.

    Raises ``ConfigError`` or ``DataError`` before any work when request or data are wrong, ``TrainingError`` when no trial
    came to its end.
    """
    progress = progress or Progress()
    check_study(config)
    refuse_processes("tune")
    check_folder(config.folder, "study.json", JOURNAL, PREPARING)
    check_request(config)
    storage = open_storage(config)  # a server that is not there is noticed before the teacher is trained
    study = open_study(config, progress)
    found = create_study(config, storage, study.task.metric, study.space.first(), study.task.data, study.inputs)
    for note in study.task.notes:
        progress.message(note)
    _run(study, found, storage, progress)
    write_outputs(study, found)
    if not found.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        reasons = sorted({str(trial.user_attrs.get("reason")) for trial in found.get_trials(deepcopy=False)})
        raise TrainingError(f"{config.folder}: no trial came to its end ({'; '.join(reasons)[:600]}); see trials.csv there")
    return config.folder


def _run(study: Study, found: optuna.Study, storage: BaseStorage, progress: Progress) -> None:
    """Rounds of work until nothing is left to do, here or elsewhere."""
    config = study.config
    told: set[int] = {trial.number for trial in found.get_trials(deepcopy=False) if trial.state.is_finished()}
    while True:
        tell_lost(found, storage, config, progress)
        trials = counted(found.get_trials(deepcopy=False))
        is_work = len(trials) < config.n_trials or any(trial.state == TrialState.WAITING for trial in trials)
        if is_work and config.workers == 1:
            work(study, progress=progress)
        elif is_work:
            _run_processes(study, found, storage, progress, told)
        elif any(trial.state in OPEN for trial in trials):
            time.sleep(POLL_SECONDS)  # other machines' trials: wait for them, or for their workers to be lost
        else:
            return


def work(study: Study, progress: Progress | None = None) -> None:
    """Take trials from the storage until there are enough: what one worker does."""
    config, progress = study.config, progress or Progress()
    found = load_study(config)
    with Worker(config.folder) as worker:
        while (trial := next_trial(found, config.n_trials)) is not None:
            with worker.beating(trial):
                try:
                    values, state = run_trial(study, found, trial), TrialState.COMPLETE
                except Pruned as reason:
                    values, state = None, TrialState.PRUNED
                    with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # ``tell`` says so below
                        trial.set_user_attr("reason", str(reason))
                except optuna.exceptions.UpdateFinishedTrialError:  # given up on while it ran, as below
                    progress.warning(TAKEN_OVER.format(trial.number))
                    continue
                except KeyboardInterrupt:  # the user's wish, and no fault of the trial's
                    trial.set_user_attr("is_interrupted", True)
                    raise
                except Exception as error:  # ours: the trial ends with the process, and is not tried again
                    trial.set_user_attr("reason", f"{type(error).__name__}: {error}")
                    found.tell(trial, state=TrialState.FAIL)
                    raise
            try:
                progress.message(describe(found.tell(trial, values, state), config))
            except (optuna.exceptions.UpdateFinishedTrialError, ValueError):  # given up on while it ran: another has it
                progress.warning(TAKEN_OVER.format(trial.number))


def tell_lost(found: optuna.Study, storage: BaseStorage, config: TuneConfig, progress: Progress) -> None:
    """Put trials whose worker is gone in line again, and say so."""
    for number in release_lost(found, storage, config):
        progress.warning(f"trial {number}: its worker is gone; it is run again, {config.retries} times at most")


def _run_processes(study: Study, found: optuna.Study, storage: BaseStorage, progress: Progress, told: set[int]) -> None:
    """Workers as processes; each finished trial is told. A worker that is killed leaves its trial to ``release_lost``.

    Raises ``AdasearchError`` when a worker ends with an error, whose traceback stands above.
    """
    config, context = study.config, multiprocessing.get_context("spawn")  # a fork would copy torch's threads half
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # workers inherit it, before they load torch
    code = code_for_workers(Operation)

    def start(index: int) -> BaseProcess:
        process = context.Process(target=_worker, args=(config, index, code), daemon=True)
        process.start()
        return process

    progress.stage("trials", config.n_trials, _finished(found, told, config, Progress()))
    processes = [start(index) for index in range(config.workers)]
    killed = 0
    try:
        while any(process.is_alive() for process in processes):
            time.sleep(POLL_SECONDS)
            progress.step(_finished(found, told, config, progress), running=_running(found))
            _check_processes(processes, config)
            for index, process in enumerate(processes):
                if process.exitcode is not None and process.exitcode < 0:
                    killed += 1
                    if killed > config.workers * (config.retries + 1):
                        raise AdasearchError(
                            f"{config.folder}: workers were killed {killed} times (signal {-process.exitcode}; 9 is what Linux does when memory"
                            " runs out); choices: fewer --workers, a smaller batch; finished trials are kept, the same command goes on"
                        )
                    tell_lost(found, storage, config, progress)
                    processes[index] = start(config.workers + killed)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            process.join()
    progress.step(_finished(found, told, config, progress))


def _worker(config: TuneConfig, index: int, code: tuple[str, ...]) -> None:
    """A process's life: its own threads, the user's code, the shared preparation, trials."""
    from adasearch import register_student
    from adasearch.console import quiet_third_parties

    quiet_third_parties()
    for name in code:
        import_once(name)
    register_student()
    try:
        work(open_study(config, Progress()))
    except AdasearchError as error:
        print(f"worker {index}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(0)


def _check_processes(processes: list[BaseProcess], config: TuneConfig) -> None:
    """Raise ``AdasearchError`` when a worker ended with an error of ours or of the trial's surroundings."""
    failed = [index for index, process in enumerate(processes) if process.exitcode is not None and process.exitcode > 0]
    if failed:
        raise AdasearchError(f"{config.folder}: worker {failed[0]} ended with an error (above); finished trials are kept, the same command goes on")


def _finished(found: optuna.Study, told: set[int], config: TuneConfig, progress: Progress) -> int:
    """How many trials are done; those not in ``told`` are told and added to it."""
    done = [trial for trial in counted(found.get_trials(deepcopy=False)) if trial.state.is_finished()]
    for trial in done:
        if trial.number not in told:
            told.add(trial.number)
            progress.message(describe(trial, config))
    return len(done)


def _running(found: optuna.Study) -> int:
    return len(found.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
