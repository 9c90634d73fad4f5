"""Where the jobs of a sweep run: in processes of this machine, or as tasks of a Ray cluster.

Every job has a process of its own, so that memory, threads and random numbers of one run are no other's, and a lost
process takes one job with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from adasearch.errors import ConfigError, one_line
from adasearch.settings import is_installed
from adasearch.sweep_jobs import Job, Outcome, perform

QUIET_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class Engine(Protocol):
    """Starts jobs and tells which have ended."""

    def start(self, job: Job) -> Any:
        """A handle, hashable."""

    def ended(self, handles: Sequence[Any]) -> list[tuple[Any, Outcome]]:
        """Wait until at least one has ended."""

    def stop(self, handles: Sequence[Any]) -> None:
        """End these at once; they go on when they are started again."""

    def close(self) -> None:
        """Give everything back."""


class LocalEngine(Engine):
    """Processes of this machine, each forked from a server that has loaded the libraries once and computed nothing."""

    def __init__(self, threads: int):
        can_fork = "forkserver" in multiprocessing.get_all_start_methods()
        self._context = multiprocessing.get_context("forkserver" if can_fork else "spawn")
        self._told: dict[multiprocessing.process.BaseProcess, Connection] = {}
        if can_fork:
            self._context.set_forkserver_preload(["adasearch.pipeline"])
        # read by the libraries when they are loaded: by the server, or by each process
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))

    def start(self, job: Job) -> multiprocessing.process.BaseProcess:
        reads, writes = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_worker, args=(job, writes), name=job.name)
        process.start()
        writes.close()  # ours; when the process ends, so does the pipe
        self._told[process] = reads
        return process

    def ended(self, handles: Sequence[multiprocessing.process.BaseProcess]) -> list[tuple[Any, Outcome]]:
        ready = set(wait([process.sentinel for process in handles]))
        return [(process, self._outcome(process)) for process in handles if process.sentinel in ready]

    def _outcome(self, process: multiprocessing.process.BaseProcess) -> Outcome:
        process.join()
        with self._told.pop(process) as reads:
            try:
                return reads.recv()
            except EOFError:
                code = process.exitcode
                how = f"killed by signal {-code}" if code and code < 0 else f"ended with exit code {code}"
                return Outcome(f"its process was {how}" if code and code < 0 else f"its process {how}", is_lost=True)

    def stop(self, handles: Sequence[multiprocessing.process.BaseProcess]) -> None:
        for process in handles:
            process.kill()  # whatever is half written lies under another name
            process.join()

    def close(self) -> None:
        """Nothing is held."""


def _worker(job: Job, writes: Connection) -> None:
    """The life of a local worker. It does not outlive the sweep, which might be started again and meet it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the sweep's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()
    writes.send(perform(job))
    writes.close()


def _end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


class RayEngine(Engine):
    """Tasks of a Ray cluster. All machines see the sweep's folder under one path and have the same environment.

    Raises ``ConfigError`` where Ray is not installed or no cluster answers.
    """

    def __init__(self, address: str, threads: int, workers: int):
        check_ray()
        import ray

        os.environ.update(QUIET_RAY)
        own = {"num_cpus": workers * threads} if address == "local" else {}
        try:
            ray.init(
                address=address, include_dashboard=False if own else None, log_to_driver=False, logging_level="ERROR",
                runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)}}, **own,
            )  # fmt: skip
        except ConnectionError as error:
            raise ConfigError(
                f"address: no Ray cluster at {address!r} ({one_line(error, 120)}); choices: the address of a cluster,"
                " auto after `ray start --head`, local"
            ) from error
        self._ray = ray
        # lost tasks are started again by the sweep, which counts and says so; max_calls: a process for every task
        self._remote = ray.remote(num_cpus=threads, max_retries=0, max_calls=1)(perform)

    def start(self, job: Job) -> Any:
        return self._remote.remote(job)

    def ended(self, handles: Sequence[Any]) -> list[tuple[Any, Outcome]]:
        ready, _ = self._ray.wait(list(handles), num_returns=1)
        return [(reference, self._outcome(reference)) for reference in ready]

    def _outcome(self, reference: Any) -> Outcome:
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except exceptions.RayTaskError as error:
            return Outcome(" ".join(str(error).split())[-300:])
        except exceptions.RayError as error:  # its worker or its machine is gone
            return Outcome(f"its process was lost ({type(error).__name__})", is_lost=True)

    def stop(self, handles: Sequence[Any]) -> None:
        for reference in handles:
            self._ray.cancel(reference, force=True)

    def close(self) -> None:
        self._ray.shutdown()


def check_ray() -> None:
    """Raise ``ConfigError`` where Ray is not installed."""
    if not is_installed("ray"):
        raise ConfigError("engine: ray is not installed; choices: pip install 'adasearch[ray]', or --engine local")
