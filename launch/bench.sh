#!/usr/bin/env bash
# Every figure of docs/performance.md that this machine can measure, beside its bar:
#   bash launch/bench.sh                     all of them (an hour or more on 2 cores)
#   bash launch/bench.sh tiles layers        some: layers tiles kernel memory keep-matmuls long-rows
#                                            passes peers sampling profile
# peers: other implementations, in an environment of their own. transfusion-pytorch comes from the
# registry. MOGAO_BAGEL=FOLDER names a clone of BAGEL's repository; without it BAGEL is left out.
# Each is a command of its own, such as `mogao bench tiles`; a failure does not stop the others.
# Installs the TPU compiler, which needs no TPU. PYTHON: which Python to use.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh

known="layers tiles kernel memory keep-matmuls long-rows passes peers sampling profile"
wanted=${*:-$known}
for name in $wanted; do
    case " $known " in
        *" $name "*) ;;
        *) echo "There is no benchmark '$name'; there are: $known." >&2; exit 2 ;;
    esac
done
make_environment .venv-bench plan,demo || exit 1
mogao=.venv-bench/bin/mogao
export ALLOW_MULTIPLE_LIBTPU_LOAD=1 # a TPU compiler may run beside another

.venv-bench/bin/python - <<'PY'
import datetime
from mogao_jax.training.workdir import machine_facts
print(datetime.date.today().isoformat(), *(f"{k}: {v}" for k, v in machine_facts().items()), sep="\n")
PY
git rev-parse --short HEAD 2>/dev/null | sed 's/^/commit: /'

peers() {
    make_environment .venv-peers demo || return 1
    .venv-peers/bin/python -m pip install --disable-pip-version-check --quiet \
        torch==2.13.0 transformers==4.49.0 transfusion-pytorch==0.20.0 || return 1
    [ -n "${MOGAO_BAGEL:-}" ] || echo "BAGEL is left out: no MOGAO_BAGEL names a clone of it"
    .venv-peers/bin/mogao bench peers --transfusion ${MOGAO_BAGEL:+--bagel "$MOGAO_BAGEL"}
}

failed=""
for name in $wanted; do
    echo
    echo "== $name"
    case $name in
        peers) peers ;;
        sampling) JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} $mogao bench sampling ;;
        profile) JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} $mogao profile --config=configs/quickstart.py ;;
        *) $mogao bench "$name" ;;
    esac || failed="$failed $name"
done
[ -z "$failed" ] || { echo; echo "Not met, or failed:$failed" >&2; exit 1; }
