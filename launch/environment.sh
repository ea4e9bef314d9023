# Sourced by the other scripts: finds a Python and makes a virtual environment with what
# constraints.txt pins. Needs bash and Python 3.11+ with pip; no git, no compiler.

# Prints the command of a Python 3.11 or newer ($PYTHON, if set, is taken or refused).
find_python() {
    local candidate check='import sys; sys.exit(sys.version_info < (3, 11))'
    local tested='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
    if [ -n "${PYTHON:-}" ]; then
        "$PYTHON" -c "$check" 2>/dev/null && { echo "$PYTHON"; return 0; }
        echo "PYTHON=$PYTHON is not a Python 3.11 or newer." >&2
        return 1
    fi
    for candidate in python3 python3.12 python3.13 python3.11 python; do
        "$candidate" -c "$tested" >/dev/null 2>&1 && { echo "$candidate"; return 0; }
    done
    for candidate in python3 python3.14 python3.15 python; do # newer than what was tested
        "$candidate" -c "$check" >/dev/null 2>&1 && { echo "$candidate"; return 0; }
    done
    echo "No Python 3.11 or newer was found; python3 is $(python3 --version 2>/dev/null || echo missing)." >&2
    echo "Install one, or name it: PYTHON=/path/to/python3.12 bash $0" >&2
    return 1
}

# make_environment DIR EXTRAS: installs this repository with the extras (editable) into DIR.
# An environment made from the same constraints.txt, setup.py and Python is used again.
make_environment() {
    local directory=$1 extras=$2 python stamp log
    python=$(find_python) || return 1
    stamp=$("$python" - "$PWD/$directory" "$extras" <<'PY'
import hashlib, pathlib, sys
files = b"".join(pathlib.Path(f).read_bytes() for f in ("constraints.txt", "setup.py"))
print(hashlib.sha256(files + repr((sys.argv[1:], sys.version)).encode()).hexdigest())
PY
    ) || return 1
    if [ "$(cat "$directory/stamp" 2>/dev/null)" = "$stamp" ]; then
        return 0
    fi
    if [ -e "$directory" ] && [ ! -e "$directory/pyvenv.cfg" ]; then
        echo "$directory is there but is no virtual environment: move it away." >&2
        return 1
    fi
    echo "Making the environment $directory with $("$python" --version) (once; a minute or two) ..."
    rm -rf "$directory"
    if ! "$python" -m venv "$directory"; then
        echo "Python's venv module does not work here (Debian, Ubuntu: apt install python3-venv)." >&2
        return 1
    fi
    log=$directory/install.log
    if ! "$directory/bin/python" -m pip install --disable-pip-version-check --no-input \
        --no-compile -c constraints.txt -e ".[$extras]" >"$log" 2>&1; then
        echo "The installation failed; the end of $directory/install.log:" >&2
        grep -v '^WARNING: Location' "$log" | tail -n 15 >&2
        return 1
    fi
    echo "$stamp" >"$directory/stamp"
}
