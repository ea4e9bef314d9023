#!/usr/bin/env bash
# From nothing to a trained small model, what it draws and writes, its scores, and a report, on a
# laptop's CPU:
#   bash launch/quickstart.sh
# Arguments go to `mogao train`; a short try:
#   MOGAO_CASES=1 bash launch/quickstart.sh --config.train.max_minutes=1
# Variables:
#   MOGAO_EXTRAS=demo,cuda  (or demo,tpu) installs JAX for an accelerator
#   MOGAO_CASES=16          scored cases of every category
#   MOGAO_STEPS=50          sampling steps per image
#   PYTHON                  which Python to take
# Run again, it goes on where the run folder left off.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh

workdir=runs/quickstart
prompts=launch/prompts/quickstart.jsonl
demo=mogao_jax/worlds/shapes/assets/demo.safetensors
cases=${MOGAO_CASES:-16}
steps=${MOGAO_STEPS:-50}
for number in "$cases" "$steps"; do
    case $number in '' | *[!0-9]* | 0*)
        echo "MOGAO_CASES and MOGAO_STEPS are whole numbers above 0, got '$number'." >&2
        exit 2 ;;
    esac
done
# Twice the cases: every task's cases then come in batches of this one size, and programs that
# were compiled for one serve all.
batch=$((2 * (cases < 16 ? cases : 16)))
started=$(date +%s)
elapsed() {
    local s=$(($(date +%s) - started))
    echo "$((s / 60)) min $((s % 60)) s"
}
score() {
    .venv/bin/mogao eval shapes --out "$workdir" --per-category "$cases" --batch-size "$batch" \
        --steps "$steps" "$@"
}

make_environment .venv "${MOGAO_EXTRAS:-demo}"
echo "Installed ($(elapsed)). Training a small Mogao on the embedded world of shapes ..."
.venv/bin/mogao train --config=configs/quickstart.py --workdir "$workdir" "$@"

echo
echo "Trained ($(elapsed)). It draws and answers the prompts of $prompts ..."
.venv/bin/mogao sample --checkpoint "$workdir" --batch "$prompts" --out "$workdir/samples" \
    --steps "$steps" --batch-size 16 --overwrite

echo
echo "=== The model you have just trained ($(elapsed)) ==="
score --checkpoint "$workdir"
echo
echo "=== The same model untrained, for comparison ($(elapsed)) ==="
score --checkpoint "$workdir" --untrained --suffix _untrained
echo
if [ -f "$demo" ]; then
    echo "=== The demo checkpoint of the package, which was not trained here ($(elapsed)) ==="
    echo "Its world has twice the shapes and colors (see 'world'): other prompts, and harder ones."
    score --checkpoint demo --suffix _demo
else
    echo "No scores of the demo checkpoint: $demo is not there."
    rm -f "$workdir"/{scores,grid}_demo.{json,png,html}
fi

echo
echo "Scored ($(elapsed)). Writing the report ..."
.venv/bin/mogao report --workdir "$workdir"
echo
echo "Done in $(elapsed), installation included."
echo "Open $workdir/report.html in a browser: what was learned, samples, and scores."
echo "Its samples as conversations: $workdir/samples/index.html"
echo "Try your own: .venv/bin/mogao sample --checkpoint $workdir \"a red circle left of a blue square\""
echo "TensorBoard: .venv/bin/pip install tensorboard && .venv/bin/tensorboard --logdir $workdir/tensorboard"
