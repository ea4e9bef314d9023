#!/usr/bin/env bash
# From nothing to images in a minute, and to a model of one's own in ten, on a laptop's CPU:
#   bash launch/quickstart.sh
# The demo checkpoint draws and tells stories. Then it is taught three shapes that it has never
# seen (configs/new_shapes.py), and scored before and after. Arguments go to `mogao train`; a
# short try:
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
sample() {
    .venv/bin/mogao sample --steps "$steps" --batch-size 16 --overwrite "$@"
}
score() {
    .venv/bin/mogao eval shapes --out "$workdir" --per-category "$cases" --batch-size "$batch" \
        --steps "$steps" "$@" | sed -n '/^Scores/p; /overall/p'
}

make_environment .venv "${MOGAO_EXTRAS:-demo}"
echo "Installed ($(elapsed)). The demo checkpoint draws, answers, edits and tells stories ..."
sample --checkpoint demo --batch launch/prompts/quickstart.jsonl --out "$workdir/demo_samples"
echo "See $workdir/demo_samples/index.html ($(elapsed))."

echo
echo "Now it learns what it has never seen: diamonds, hearts and arrows ..."
.venv/bin/mogao train --config=new_shapes --workdir "$workdir" "$@"

echo
echo "Trained ($(elapsed)). It draws, answers, edits and tells stories of the new shapes ..."
sample --checkpoint "$workdir" --batch launch/prompts/new_shapes.jsonl --out "$workdir/samples"

echo
echo "Scores on held-out prompts of the new shapes, before and after, and untrained ($(elapsed)) ..."
score --checkpoint "$workdir" --world novel --tasks t2i,qa,edit
score --checkpoint demo --world novel --tasks t2i,qa,edit --suffix _demo
score --checkpoint "$workdir" --world novel --tasks t2i,qa,edit --untrained --suffix _untrained
echo "And on the shapes that it knew, which it should not forget ($(elapsed)) ..."
score --checkpoint "$workdir" --world grid --tasks t2i,qa,edit --suffix _old

echo
.venv/bin/mogao report --workdir "$workdir"
echo
echo "Done in $(elapsed), installation included."
echo "Open $workdir/report.html in a browser: judged images, scores, samples and curves."
echo "Its samples as conversations: $workdir/samples/index.html"
echo "Try your own: .venv/bin/mogao sample --checkpoint $workdir \"a red heart left of a blue star\""
echo "Your own images, each with a caption in a .txt file beside it:"
echo "  .venv/bin/mogao train --data FOLDER --workdir runs/mine"
echo "TensorBoard: .venv/bin/pip install tensorboard && .venv/bin/tensorboard --logdir $workdir/tensorboard"
