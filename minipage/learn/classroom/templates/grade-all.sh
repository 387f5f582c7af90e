#!/usr/bin/env bash
# ./grade-all.sh SUBMISSIONS RESULTS: each folder in a container of its own, which is thrown away; RESULTS/NAME.json
set -euo pipefail
engine=$(command -v podman || command -v docker)
mkdir -p "$2"
for folder in "$1"/*/; do
    name=$(basename "$folder")
    [ -s "$2/$name.json" ] && continue # graded already
    "$engine" run --rm --network none --read-only --tmpfs /tmp --memory 4g --pids-limit 200 \
        -v "$(realpath "$folder"):/submission:ro" minipage-grader /submission @NUMBERS@ --json >"$2/$name.json.new" &&
        mv "$2/$name.json.new" "$2/$name.json"
done
