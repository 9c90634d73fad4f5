"""Is the search worth its time on a task? Gap, agreement, rank correlation, controls; see docs/search-strategies.md.

    python scripts/diagnose_search.py sst2 --data_dir DIR --teacher demo --output_dir runs/sst2 [--search.strategy one_shot]
    python scripts/diagnose_search.py --config runs/sst2/config.yaml --output_dir runs/sst2   # a run's settings and its cache

Beside a run's settings: --search_seeds 1 2 3, --members 20 (random ones at the searched one's cost, which rank and are controls),
--front 8. Each training has a folder of its own, so that the same command goes on after a kill. Writes
<output_dir>/diagnosis/<strategy>/ and results/runs/diagnosis_<task>.json (for strategies other than gumbel diagnosis_<task>_<strategy>.json) with its figures. Time: (3 searches + 20 + 9 trainings)
of the run's steps; on 2 cores at 1,500 steps of 128 about an afternoon.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import shutil

from adasearch.arguments import parse_settings
from adasearch.cli import explained, import_user_code
from adasearch.console import make_progress
from adasearch.diagnosis_run import DiagnosisConfig, diagnose
from adasearch.files import write_json
from adasearch.pipeline import run_folder
from adasearch.run_files import script_command
from adasearch.search_plots import format_rank

RESULTS = Path(__file__).resolve().parent.parent / "results"


def main() -> None:
    """Diagnose, write, and say the few numbers that count."""
    settings, modules = parse_settings(
        DiagnosisConfig, sys.argv[1:], prog="diagnose_search.py", about=__doc__.splitlines()[0], positional="task"
    )
    for module in modules:
        import_user_code(module)
    with make_progress(settings.quiet) as progress:
        found = diagnose(settings, progress)
    name = f"diagnosis_{found['task'].replace('/', '--')}" + ("" if found["strategy"] == "gumbel" else f"_{found['strategy']}")
    what = f"is the search worth its time on {found['task']}: controls at equal cost, discretisation, agreement, ranking"
    write_json(RESULTS / "runs" / f"{name}.json", {"what": what, "command": script_command(), **found})
    figures = RESULTS / "figures" / name
    figures.mkdir(parents=True, exist_ok=True)
    for picture in (run_folder(settings.run_config()) / "diagnosis" / found["strategy"]).glob("*.[sp][vn]g"):
        shutil.copyfile(picture, figures / picture.name)
    ranking = found["ranking"]["by_score"]
    print(f"rank correlation {format_rank(ranking)} over {ranking['members']} members")
    for group, facts in found["controls"].items():
        print(f"{group:<20} {100 * facts['mean']:.1f}" + ("" if facts["sd"] is None else f" ± {100 * facts['sd']:.1f}"))


if __name__ == "__main__":
    sys.exit(explained(main))
