"""The saved choice of runtime and precision: ``deploy.json`` in a model's folder, written by quantising, read by all
that serve the model."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from adasearch.errors import ConfigError, ModelError, one_line
from adasearch.files import read_json, write_json
from adasearch.measure import hardware
from adasearch.progress import Progress
from adasearch.runtimes import ONNX_FILES, RUNTIMES, Runtime, choose_runtime, load_runtime

DEPLOY_FILE = "deploy.json"
VERSION = 1


@dataclass(frozen=True)
class Deployment:
    """What was chosen for a model and what was measured of it: one call of ``batch_size`` texts of ``seq_len`` word
    pieces on ``threads`` threads.

    ``score`` is the metric on the validation examples, ``score_fp32`` that of torch in fp32, ``max_drop`` the points
    (hundredths) that were allowed between them; None where nothing was chosen by them. ``tried`` holds the same fields of every runtime and precision, with
    latency_ms_p90, drop_points (in regression those of R² where it loses more), logits_difference (the largest from torch in fp32) and a note; what failed has None
    for numbers. ``left_out`` names the operations that stay fp32 in the int8 graph. ``hardware`` is the machine's.
    """

    runtime: str
    precision: str
    threads: int
    batch_size: int
    seq_len: int
    metric: str
    score: float
    score_fp32: float
    latency_ms_p50: float
    texts_per_s: float
    size_bytes: int
    max_drop: float | None = 0.5
    left_out: list[str] = field(default_factory=list)
    tried: list[dict[str, Any]] = field(default_factory=list)
    hardware: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION

    def validate(self, *, where: str) -> None:
        """Raise ``ConfigError`` naming ``where`` when a number is none, a runtime unknown or the version another."""
        if self.version != VERSION:
            raise ConfigError(f"{where}: version: {self.version!r} cannot be read; choices: {VERSION}")
        if self.runtime not in RUNTIMES:
            raise ConfigError(f"{where}: runtime: {self.runtime!r} is not known; choices: {', '.join(sorted(RUNTIMES))}")
        if self.precision not in RUNTIMES[self.runtime].precisions:
            known = ", ".join(RUNTIMES[self.runtime].precisions)
            raise ConfigError(f"{where}: precision: {self.precision!r} is not known to {self.runtime}; choices: {known}")
        for name in ("threads", "batch_size", "seq_len", "size_bytes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{where}: {name}: {value!r} does not fit; choices: whole numbers from 1")
        for name in ("score", "score_fp32", "latency_ms_p50", "texts_per_s", "max_drop"):
            value = getattr(self, name)
            if name == "max_drop" and value is None:
                continue
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ConfigError(f"{where}: {name}: {value!r} does not fit; choices: a finite number")


def save_deployment(deployment: Deployment, model_dir: Path) -> Path:
    """Write the folder's deploy.json, whole or not at all; returns its path."""
    path = Path(model_dir) / DEPLOY_FILE
    deployment.validate(where=str(path))
    write_json(path, dataclasses.asdict(deployment))
    return path


def load_deployment(model_dir: Path) -> Deployment | None:
    """The folder's saved choice, None where none was saved. Raises ``ConfigError`` when the file does not hold one."""
    path = Path(model_dir) / DEPLOY_FILE
    if not path.is_file():
        return None
    again = f"`adasearch quantize {model_dir}` writes it anew"
    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({one_line(error)}); {again}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds {type(data).__name__}, not a deployment; {again}")
    fields = dataclasses.fields(Deployment)
    needed = {f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}
    unknown, missing = sorted(set(data) - {f.name for f in fields}), sorted(needed - set(data))
    if unknown or missing:
        raise ConfigError(f"{path}: unknown keys {unknown}, missing keys {missing}; {again}")
    deployment = Deployment(**data)
    deployment.validate(where=str(path))
    return deployment


def runtime_here(model_dir: Path, precision: str) -> str:
    """What ``auto`` means for a model: onnxruntime where it is installed and has the precision's graph, else torch, if that offers it."""
    has_graph = precision in ONNX_FILES and (Path(model_dir) / "onnx" / ONNX_FILES[precision]).is_file()
    return choose_runtime("auto") if has_graph or precision not in RUNTIMES["torch"].offers() else "torch"


def load_deployed(model_dir: Path, threads: int | None = None, progress: Progress | None = None) -> Runtime:
    """The model in the runtime and precision that were chosen for it, else in what ``auto`` means today.

    That is onnxruntime where it is installed and the model was exported, else torch, in fp32. ``threads`` are those of
    the choice, without one all of torch's. A choice made on another processor is taken with a warning. Raises
    ``ConfigError`` when its runtime or precision is not here, ``ModelError`` when its files are not.
    """
    model_dir, progress = Path(model_dir), progress or Progress()
    chosen = load_deployment(model_dir)
    if chosen is None:
        return load_runtime(runtime_here(model_dir, "fp32"), model_dir, threads or torch.get_num_threads())
    made_on, here = chosen.hardware.get("cpu"), hardware()["cpu"]
    if made_on is not None and made_on != here:
        progress.warning(
            f"{model_dir / DEPLOY_FILE}: {chosen.runtime} {chosen.precision} was the fastest on {made_on!r}, "
            f"this is {here!r}; `adasearch quantize {model_dir}` measures anew"
        )
    try:
        return load_runtime(chosen.runtime, model_dir, threads or chosen.threads, chosen.precision)
    except (ConfigError, ModelError) as error:
        raise type(error)(f"{model_dir / DEPLOY_FILE}: {error}") from error
