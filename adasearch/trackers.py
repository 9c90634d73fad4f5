"""``report_to``: the trackers of a run, started and ended. They write below the run's folder and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import yaml
from accelerate import Accelerator

from adasearch.config import RunConfig
from adasearch.encoder_config import EncoderRunConfig
from adasearch.errors import ConfigError
from adasearch.settings import is_installed, to_dict, tracker_names
from adasearch.sparse_pretraining_config import SparsePretrainingConfig
from adasearch.tracking import numbers

# Where a tracker keeps what it does not send: unset, all of these lie in the home folder. wandb's own offline mode is the
# user's to ask for (WANDB_MODE=offline).
FOLDERS = {
    "tensorboard": (),
    "trackio": ("TRACKIO_DIR",),
    "wandb": ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"),
}

Tracked = RunConfig | EncoderRunConfig | SparsePretrainingConfig

_set: dict[str, str] = {}  # environment variables that were set here


def check_trackers(config: Tracked) -> None:
    """Raise ``ConfigError`` where a tracker that was asked for is not installed."""
    for name in tracker_names(config.report_to):
        if not is_installed(name):
            raise ConfigError(f"report_to: {name!r} is not installed; pip install {name}, or 'adasearch[tracking]' for tensorboard")


def start_trackers(config: Tracked, subject: str, folder: Path, accelerator: Accelerator) -> None:
    """Give the accelerator the trackers of ``config.report_to``, with the run's settings told; they write to ``folder/tracking``.

    ``subject`` names the project there: the run's task, or the model where there is none.
    """
    accelerator.trackers.clear()
    names = tracker_names(config.report_to)
    if not names or not accelerator.is_main_process:
        return
    where = folder / "tracking"
    where.mkdir(parents=True, exist_ok=True)
    for name in names:
        for variable in FOLDERS[name]:
            if os.environ.get(variable) == _set.get(variable):  # not the user's: unset, or another run's of this process
                os.environ[variable] = _set[variable] = str(where.resolve())
    accelerator.project_configuration.logging_dir = str(where)  # several runs of one process share the accelerator
    accelerator.log_with = names
    accelerator.init_trackers(f"adasearch-{subject.replace('/', '-').replace(':', '-')}")
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log({"settings": yaml.safe_dump(to_dict(config), sort_keys=False)})
        else:
            tracker.store_init_configuration(dict(numbers(to_dict(config))))


def stop_trackers(accelerator: Accelerator) -> None:
    """Let the trackers write what they still hold. (``Accelerator.end_training`` would also end a process group.)"""
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.trackers.clear()
