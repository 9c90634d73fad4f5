#!/usr/bin/env bash
# Purpose:  the AdaBERT rows of results/: search, three seeds of student and controls, the honest table.
#               bash scripts/reproduce_adabert_glue.sh sst2|mrpc|rte [flags of adasearch run]
#           DATA_DIR names a folder with <task>/{train,validation,test}.parquet; without it the hub is used.
#           UNLABELED names a file of reviews for sst2 (IMDB's training texts: column "text"); without it there are none.
# Time:     on two cores, the teacher's fine-tuning included: sst2 about 75 minutes, mrpc and rte about 30 each.
# Hardware: two CPU cores, 8 GB of memory.
# Expected: runs/<task>/report.md as in results/README.md, within the spread over seeds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_WAIT_POLICY=PASSIVE
python=${VENV:-.venv}/bin/python
task=${1:?which task: sst2, mrpc or rte}
shift
flags=(--seeds 1 2 3 --threads 1 --cpu true --mixed_precision bf16 --search.efficiency constraint)
case $task in
sst2)
    flags+=(--finetune.epochs 2 --finetune.batch_size 64 --finetune.learning_rate 8e-5 --search.target_macs 6000000)
    # the neighbour copies alone: the training set already holds the phrases of its sentences
    flags+=(--transfer.neighbours 1 --transfer.fragments 0 --transfer.splices 0)
    flags+=(${UNLABELED:+--unlabeled_file "$UNLABELED" --transfer.unlabeled_size 120000})
    ;;
mrpc | rte)
    flags+=(--finetune.epochs 4 --search.target_macs 24000000)
    # pairs lose their meaning easily: fewer and smaller changes, and as many labelled pairs as made ones
    flags+=(--transfer.size 20000 --transfer.neighbours 1 --transfer.fragments 0 --transfer.splices 0)
    flags+=(--transfer.replace_probability 0.15 --transfer.labelled_share 0.5)
    # few pairs are soon known by heart: fewer steps, and word vectors that stay near the teacher's
    for stage in search retrain; do
        flags+=(--$stage.steps 400 --$stage.batch_size 64 --$stage.embedding_rate 0.1)
    done
    ;;
*)
    echo "unknown task '$task'; choices: sst2, mrpc, rte" >&2
    exit 2
    ;;
esac
"$python" -m adasearch run "$task" ${DATA_DIR:+--data_dir "$DATA_DIR"} "${flags[@]}" "$@"
"$python" scripts/make_results.py "runs/$task"
