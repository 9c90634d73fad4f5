"""Imports go down the floors only, wherever in a file they stand; below the top nothing talks to the outside."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "adasearch"
FLOORS: tuple[tuple[str, ...], ...] = (
    ("architecture", "sparse_pretraining_config", "sparse_pattern", "sparsity_schedule", "bench_config", "bit_widths", "cofi_config", "config", "earlybert_config", "fit_config", "quantize_config", "search_config", "settings", "task_config", "encoder_config", "encoder_latency", "errors", "files", "latency", "progress", "prune_ofa_config", "quantgpt_config", "question_config", "registry", "stopwatch", "sweep_config", "tune_config", "warm_config"),  # F0: plain data; knows no torch
    ("contrastive", "teaching", "cost", "activation_quantizers", "sparse_storage", "gates", "language_objectives", "objectives", "packing", "pareto", "quantizers", "rounding", "sparsity", "tickets", "weight_quantizer", "span_objectives", "structure", "carried_code", "gate_values", "hard_concrete", "budget", "lagrangian", "layer_matching"),  # F1: tensors; knows no BERT
    ("cell", "sparse_model", "gradual_pruning", "encoder", "encoder_layers", "encoder_parts", "shrink_encoder", "low_bit", "low_bit_size", "masked_norm", "member_cost", "operations", "packed_modules", "inherit_layers", "inherited", "pair_operations", "quantize_model", "quantize_aware", "int8_modules", "sparse_files", "sparse_size", "shrink", "student", "supernet", "nni_space", "nni_cost", "nni_network"),  # F2: modules; knows no task
    (
        "augment", "masked_language", "masked_model", "masked_task", "word_pieces", "calibration", "corpora", "demo_assets", "known_labels", "labels", "language", "language_task", "metrics", "outputs", "perplexity", "rouge", "sources", "space", "model_inputs", "tables", "tasks", "teacher",
        "texts", "tokens", "transfer", "vocabulary", "student_vocabulary", "near_copies", "warm_start", "answers", "question_answering", "questions", "reader", "squad_metrics",
    ),  # F3: the problem
    ("comparison", "derive", "distributed", "evolution", "search_method", "strategies", "taught_method", "fit", "methods", "nni_log", "nni_training", "nni_trials", "tracking", "turns"),  # F4: the one loop and the methods (a folder stands for all its files)
    (
        "__init__", "__main__", "sparse_pretraining_run", "sparse_pretraining_report", "arguments", "baselines", "bench", "bench_ratios", "cold", "references", "speed_table", "streams", "table_files", "bundle", "canvas", "card", "cascade", "chunks", "classifier", "cli", "user_code", "console", "cell_panel", "curves", "draw", "histories", "label_places",
        "environment", "evidence", "export", "finished", "formats", "honest", "honest_rows", "html", "html_charts", "report_tables", "inspect_run", "latency_bench", "latency_target", "layout", "markdown", "measure", "pipeline",
        "answers_file", "parts", "predict", "score_models", "scoring", "accelerator", "lesson", "prepare", "teacher_training", "prune", "prune_files", "question_problem", "report", "report_files", "svg", "graph_runtimes", "runtime_base", "runtimes", "torch_runtimes", "play_off", "starts", "systems", "warm_run", "serve", "verbs", "method_verbs", "report_verbs", "run_verbs", "student_verbs", "use_verbs", "verdict", "web", "web_page",
        "diagnosis", "diagnosis_run", "search_plots", "sweep", "sweep_engines", "sweep_jobs", "sweep_table", "cofi_budget", "cofi_checks", "cofi_plots", "cofi_run", "encoder_latency_bench", "encoder_problem", "encoder_report", "encoder_run", "encoder_training", "earlybert_run", "run_files", "structure_plots", "ticket_plots", "quantgpt_plots", "quantgpt_report", "quantgpt_run", "deploy", "int8", "qdq_export", "prune_ofa_run", "prune_ofa_source", "prune_ofa_forms", "prune_ofa_systems", "graph_bench", "sparse_tables", "sparsity_plots", "quantize", "quantize_texts", "trace", "trackers", "tune_check", "tune_plots", "tune_report", "tune_space", "tune_storage", "tune_study", "tune_trial",
    ),  # F5: the ways out
)  # fmt: skip
TOP = len(FLOORS) - 1


def modules() -> dict[str, Path]:
    """Dotted name without the package's -> file, for every module there is."""
    paths = sorted(PACKAGE.rglob("*.py"))
    names = (".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in paths)
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths)}


def floor_of(module: str) -> int:
    """Number of the floor a module stands on."""
    found = [number for number, names in enumerate(FLOORS) if module.split(".")[0] in names]
    assert len(found) == 1, f"module {module} stands on floors {found}: give it one in FLOORS of tests/test_floors.py"
    return found[0]


def imports(tree: ast.AST, module: str, known: set[str]) -> Iterator[tuple[int, str]]:
    """Line and module of every import of ours, inside functions too; the package itself is ``__init__``."""
    package = ["adasearch", *module.split(".")[:-1]] if module != "methods" else ["adasearch", "methods"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            targets = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            parts = target.split(".")
            if parts[0] != "adasearch":
                continue
            while parts[1:] and ".".join(parts[1:]) not in known:
                parts.pop()  # the last was a name in the module, not a module
            yield node.lineno, ".".join(parts[1:]) or "__init__"


def violations(source: str, module: str, known: set[str]) -> list[str]:
    """What a file does that its floor forbids, as ``line: what``."""
    tree, floor, found = ast.parse(source), floor_of(module), []
    for line, target in imports(tree, module, known):
        if floor_of(target) > floor:
            found.append(f"{line}: imports {target}, which is {floor_of(target) - floor} floors up")
        is_sibling = module.startswith("methods.") and target.startswith("methods.") and target != module
        if is_sibling and "methods.base" not in (module, target):
            found.append(f"{line}: imports the method {target}; methods know methods.base only")
    if floor == TOP:
        return found
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in ("print", "input", "breakpoint"):
            found.append(f"{node.lineno}: calls {node.id}; tell a Progress instead")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in ("sys.argv", "sys.stdout", "sys.stderr", "sys.exit", "os.environ", "os.getenv", "os.putenv"):
                found.append(f"{node.lineno}: uses {name}; take a setting instead")
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "sys"):
            taken = {alias.name for alias in node.names} & {"argv", "stdout", "stderr", "exit", "environ", "getenv"}
            found += [f"{node.lineno}: takes {name} from {node.module}" for name in sorted(taken)]
    return found


@pytest.mark.parametrize("module", modules())
def test_imports_go_down_and_only_the_top_talks(module: str) -> None:
    path = modules()[module]
    assert violations(path.read_text(encoding="utf-8"), module, set(modules())) == [], f"{path.name}: see FLOORS"


def test_no_module_is_named_twice() -> None:
    names = [name for floor in FLOORS for name in floor]
    assert len(names) == len(set(names))


def test_plain_data_knows_no_torch() -> None:
    for module in FLOORS[0]:
        tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {name for name in names if name.split(".")[0] in ("torch", "transformers", "datasets")}, module


@pytest.mark.parametrize(
    ("module", "source", "says"),
    [
        ("gates", "from adasearch.fit import fit", "1: imports fit"),
        ("gates", "def f():\n    import adasearch.cli", "2: imports cli"),
        ("gates", "if x:\n    from adasearch import pipeline", "2: imports pipeline"),
        ("gates", "from .fit import fit", "1: imports fit"),
        ("gates", "import adasearch", "1: imports __init__"),
        ("methods.cofi", "from adasearch.methods.adabert import search", "1: imports the method methods.adabert"),
        ("methods.cofi", "from ..cli import main", "1: imports cli"),
        ("methods.cofi", "from .adabert import search", "1: imports the method methods.adabert"),
        ("fit", "print(1)", "1: calls print"),
        ("config", "import sys\nx = sys.argv[1]", "2: uses sys.argv"),
        ("tasks", "import os\nx = os.environ['HOME']", "2: uses os.environ"),
        ("tasks", "from os import environ", "1: takes environ from os"),
    ],
)
def test_the_test_sees_what_it_must(module: str, source: str, says: str) -> None:
    known = {"gates", "fit", "cli", "pipeline", "methods", "methods.base", "methods.adabert", "methods.cofi"}
    assert [line for line in violations(source, module, known) if line.startswith(says)], says


def test_the_test_lets_pass_what_is_right() -> None:
    known = {"gates", "fit", "methods", "methods.base", "methods.cofi", "cli"}
    downwards = "from adasearch.methods.base import Method\nfrom adasearch.fit import fit"
    assert violations(downwards, "methods.cofi", known) == []
    assert violations("import os\nprint(os.environ)", "cli", known) == []
    with pytest.raises(AssertionError, match="give it one in FLOORS"):
        floor_of("new_module")
