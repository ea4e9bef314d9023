#!/usr/bin/env bash
# From nothing to a trained small model and a report, on a laptop's CPU:
#   bash launch/quickstart.sh
# Arguments go to `mogao train`, for example --config.train.num_steps=100.
# MOGAO_EXTRAS=demo,cuda (or demo,tpu) installs JAX for an accelerator. PYTHON: which Python to
# take. Run again, it goes on where the run folder left off.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh

workdir=runs/quickstart
started=$(date +%s)
elapsed() {
    local s=$(($(date +%s) - started))
    echo "$((s / 60)) min $((s % 60)) s"
}

make_environment .venv "${MOGAO_EXTRAS:-demo}"
echo "Installed ($(elapsed)). Training a small Mogao on the embedded world of shapes ..."
.venv/bin/mogao train --config=configs/quickstart.py --workdir "$workdir" "$@"
echo "Trained ($(elapsed)). Writing the report ..."
.venv/bin/mogao report --workdir "$workdir"
echo
echo "Done in $(elapsed), installation included."
echo "Open $workdir/report.html in a browser to see what was learned."
echo "TensorBoard: .venv/bin/pip install tensorboard && .venv/bin/tensorboard --logdir $workdir/tensorboard"
