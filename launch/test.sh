#!/usr/bin/env bash
# Every test, in an environment of its own. Arguments go to pytest:
#   bash launch/test.sh                        all of them
#   bash launch/test.sh tests/sequence -k pack some of them
# MOGAO_TEST_WORKERS: processes (default: one per core, at most 4). PYTHON: which Python to take.
# MOGAO_TEST_EXTRAS: what is installed (default: test,demo; with parity also torch, transformers and
# diffusers, which ported models are compared with).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh
make_environment .venv-test "${MOGAO_TEST_EXTRAS:-test,demo}"

cores=$(.venv-test/bin/python -c 'import os; print(min(4, os.cpu_count() or 1))')
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
# worksteal keeps the tests of a file together, which share compiled functions, and still ends
# with all workers busy.
exec .venv-test/bin/python -m pytest -q -n "${MOGAO_TEST_WORKERS:-$cores}" --dist worksteal \
    -rs --durations=10 "$@"
