#!/usr/bin/env bash
# Purpose:  the AdaBERT rows of results/: search, three seeds of student and controls, the honest table.
#               bash scripts/reproduce_adabert_glue.sh sst2|mrpc|rte|qnli|snli [flags of adasearch run]
#           The settings are those of scripts/adabert/<task>.yaml; flags override them.
#           DATA_DIR names a folder with <task>/{train,validation,test}.parquet; without it the hub is used.
#           scripts/prepare_tasks.py makes such a folder, with examples to choose by and texts without labels for sst2 and rte:
#           DATA_DIR=runs/glue/data; and TEACHERS=runs/glue/teachers the teachers of the tables, by task: rte's learned SNLI first, and one
#           that is fine-tuned on rte alone stays at chance. Elsewhere UNLABELED names a file of them (for sst2 IMDB's training texts: column "text").
# Time:     on two cores, the teacher's fine-tuning included: sst2 about an hour and a half, mrpc about 40 minutes, rte about an hour.
# Hardware: two CPU cores, 8 GB of memory.
# Expected: runs/<task>/report.md as in results/README.md, within the spread over seeds. sst2's table was trained for more steps on fewer
#           texts, by the command that stands there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_WAIT_POLICY=PASSIVE
python=${VENV:-.venv}/bin/python
task=${1:?which task: sst2, mrpc, rte, qnli or snli}
shift
settings=scripts/adabert/$task.yaml
if [ ! -e "$settings" ]; then
    echo "unknown task '$task'; choices: sst2, mrpc, rte, qnli, snli" >&2
    exit 2
fi
unlabeled=(${UNLABELED:+--unlabeled_file "$UNLABELED" --transfer.unlabeled_size 120000})
"$python" -m adasearch run "$task" --config "$settings" --seeds 1 2 3 ${DATA_DIR:+--data_dir "$DATA_DIR"} ${TEACHERS:+--teacher "$TEACHERS/$task"} ${unlabeled[@]+"${unlabeled[@]}"} "$@"
"$python" scripts/make_results.py "runs/$task"
