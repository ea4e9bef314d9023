#!/usr/bin/env bash
# The demo checkpoint that ships with the package, trained anew: nine stages, then the export.
#   bash launch/demo.sh       364 minutes on 2 CPU cores
# It writes runs/demo.safetensors; `mogao sample --checkpoint runs/demo.safetensors "..."` uses it.
# The shipped one is that file as mogao_jax/worlds/shapes/assets/demo.safetensors. Arguments go to
# every stage's `mogao train`. Run again, it resumes where it stopped.
# Variables: MOGAO_EXTRAS=demo,cuda (or demo,tpu) installs JAX for an accelerator; PYTHON.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh

make_environment .venv "${MOGAO_EXTRAS:-demo}"
for stage in 1 2 3 4 5 6 7 8 9; do
    workdir=runs/demo
    [ "$stage" = 1 ] || workdir=runs/demo_stage$stage
    .venv/bin/mogao train --config="configs/demo.py:stage=$stage" --workdir "$workdir" "$@"
done
.venv/bin/mogao export runs/demo_stage9 --out runs/demo.safetensors
