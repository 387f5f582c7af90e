#!/usr/bin/env bash
# Gradescope runs this once, as root, while it builds the autograder's image.
# Anywhere else: AUTOGRADER=/some/folder bash setup.sh, with this folder's files in /some/folder/source.
set -euo pipefail
root=${AUTOGRADER:-/autograder}
learner=${LEARNER:-learner} # who runs what was handed in
PATH=$PATH:/usr/sbin:/sbin

find_python() { # a Python of 3.11 or later that can make environments
    for candidate in python3.13 python3.12 python3.11 python3; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

python=$(find_python)
if [ -z "$python" ]; then
    apt-get update
    apt-get install -y --no-install-recommends python3.12 python3.12-venv ||
        apt-get install -y --no-install-recommends python3.11 python3.11-venv
    python=$(find_python)
fi
"$python" -m venv "$root/venv"
"$root/venv/bin/pip" install --quiet --no-input --disable-pip-version-check -r "$root/source/requirements.txt"

mkdir -p "$root/results"
if [ "$(id -u)" = 0 ]; then # a learner's code runs as somebody who can change neither minipage nor the results
    id "$learner" >/dev/null 2>&1 || useradd --system --no-create-home --shell /usr/sbin/nologin "$learner"
    chmod -R go-w "$root/source" "$root/venv"
    chmod 700 "$root/results"
fi
"$root/venv/bin/python" -c 'import hypothesis, numba, numpy; print("minipage can grade here")'
