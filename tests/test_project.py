"""The project's files agree with each other and with what the README promises."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import adasearch
from adasearch.space import load_space, packaged_spaces

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("adasearch", "tests", "scripts") for path in (ROOT / folder).rglob("*.py"))
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
MODULES = [module.name for module in pkgutil.walk_packages(adasearch.__path__, "adasearch.")]
OF_AN_EXTRA = dict.fromkeys(("adasearch.nni_network", "adasearch.nni_training", "adasearch.nni_trials"), "nni")  # they import it at once
SPACES = sorted(path.stem for path in (ROOT / "search_spaces").glob("*.yaml"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def dependencies(*extras: str) -> set[str]:
    """Names of the distributions in pyproject.toml: the core's and those of the extras, of all where none is named."""
    project = pytest.importorskip("tomllib", reason="came with Python 3.11").loads(PYPROJECT)["project"]
    optional = project["optional-dependencies"]
    lists = [project["dependencies"], *(optional[extra] for extra in extras or optional)]
    return {re.split(r"[\[<>=!]", text)[0].lower() for texts in lists for text in texts} - {"adasearch"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_file_is_python_3_10(path: Path) -> None:
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parts[-2] != "tests"], ids=name_of)
def test_every_file_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("module", [name for name in MODULES if name != "adasearch.__main__"])
def test_every_public_class_and_function_has_a_docstring(module: str) -> None:
    def is_public(name: str, thing: object) -> bool:
        return not name.startswith("_") and getattr(thing, "__module__", None) == module

    if module in OF_AN_EXTRA:
        pytest.importorskip(OF_AN_EXTRA[module])
    missing = []
    for name, thing in vars(importlib.import_module(module)).items():
        if not is_public(name, thing) or not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        missing += [] if thing.__doc__ else [name]
        for member, function in vars(thing).items() if inspect.isclass(thing) else ():
            # an override may leave the words to what it overrides; getdoc looks there
            if inspect.isfunction(function) and is_public(member, function):
                missing += [] if inspect.getdoc(getattr(thing, member)) else [f"{name}.{member}"]
    assert missing == [], f"{module}: without docstring"


def test_torch_is_pinned_so_that_no_accelerator_packages_are_pulled() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert "torch==2.13.0" in pins


def test_every_dependency_has_a_tested_version() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].strip().lower() for line in pins if line and not line.startswith("#")}
    assert dependencies() <= pinned


def test_every_import_is_a_declared_dependency() -> None:
    declared = dependencies()
    modules = {name.replace("-", "_") for name in declared} | {"yaml", "sklearn", "adasearch"}
    # these come with datasets, transformers, scikit-learn and optuna
    modules |= {"pandas", "pyarrow", "tokenizers", "huggingface_hub", "scipy", "filelock", "sqlalchemy", "threadpoolctl"} | sys.stdlib_module_names
    for path in (ROOT / "adasearch").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] in modules, f"{name_of(path)}:{node.lineno}: {name} is not declared"


def test_every_search_space_is_package_data() -> None:
    assert 'search_spaces = "adasearch/search_spaces"' in PYPROJECT
    assert SPACES and sorted(packaged_spaces()) == SPACES


@pytest.mark.parametrize("space", SPACES)
def test_every_search_space_loads(space: str) -> None:
    assert load_space(space).name == space


def test_public_names_are_what_they_say() -> None:
    assert set(adasearch.__all__) <= set(dir(adasearch))
    for name in adasearch.__all__:
        assert getattr(adasearch, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'comprss'; public: Architecture"):
        adasearch.comprss


def test_compress_is_a_function_and_no_module_takes_its_name() -> None:
    assert callable(adasearch.compress) and not (ROOT / "adasearch" / "compress.py").exists()


def test_importing_adasearch_registers_the_student() -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from adasearch.student import AdasearchConfig, AdasearchForSequenceClassification

    assert type(AutoConfig.for_model("adasearch")) is AdasearchConfig
    assert AutoModelForSequenceClassification._model_mapping[AdasearchConfig] is AdasearchForSequenceClassification


@pytest.mark.parametrize("script", ["scripts/demo.sh", "scripts/test.sh", ".ci/run"])
def test_scripts_are_whole_and_say_what_they_do(script: str) -> None:
    text = (ROOT / script).read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", ROOT / script], check=True)
    assert os.access(ROOT / script, os.X_OK) and "set -euo pipefail" in text
    if script.startswith("scripts/"):
        for word in ("# Purpose:", "# Time:", "# Hardware:", "# Expected:", "source scripts/environment.sh"):
            assert word in text
        assert "pip install --quiet -c constraints.txt" in (ROOT / "scripts/environment.sh").read_text(encoding="utf-8")
    else:
        assert "bash scripts/test.sh" in text


@pytest.mark.parametrize("script", ["scripts/demo.sh", "scripts/test.sh"])
def test_an_old_python_is_refused_before_anything_is_made(script: str, tmp_path: Path) -> None:
    old = tmp_path / "python-old"
    old.write_text("#!/bin/sh\nexit 1\n")  # what the version check of any Python before 3.10 ends with
    old.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(old), "VENV": str(tmp_path / "venv")}
    done = subprocess.run(["bash", ROOT / script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "no Python 3.10 or later" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_the_readme_names_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "bash scripts/demo.sh" in readme and "bash scripts/test.sh" in readme


def test_the_licence_is_apache_2() -> None:
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    for words in ("Apache License", "Version 2.0, January 2004", "END OF TERMS AND CONDITIONS"):
        assert words in licence
