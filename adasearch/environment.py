"""What this machine and this Python environment offer, for ``adasearch env`` and bug reports; no names of hosts."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import adasearch
from adasearch.measure import hardware

PACKAGES = (
    "tokenizers", "datasets", "accelerate", "optuna", "onnx", "onnxscript", "openvino", "nni",
    "pytorch-lightning", "ray",
)  # fmt: skip
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")  # processors that compute in bf16; the last is ARM's


def environment() -> dict[str, Any]:
    """``measure.hardware`` and more versions (None: not installed), bf16 flags (None: not known), the accelerator."""
    accelerator = torch.accelerator.current_accelerator() if hasattr(torch, "accelerator") else None  # came with 2.6
    return {
        "adasearch": adasearch.__version__,
        **hardware(),
        **{package: _version(package) for package in PACKAGES},
        "bf16_flags": _bf16_flags(),
        "accelerator": None if accelerator is None else str(accelerator),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _bf16_flags() -> list[str] | None:
    """Those of the processor's flags that mean bf16; only Linux tells."""
    if not (cpuinfo := Path("/proc/cpuinfo")).exists():
        return None
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(encoding="utf-8"), re.M)
    flags = set(found.group(1).split()) if found else set()
    return [flag for flag in BF16_FLAGS if flag in flags]
