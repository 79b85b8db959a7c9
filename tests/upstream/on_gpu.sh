#!/usr/bin/env bash
# The verdicts on vllm-omni's releases, and its forward pass timed beside ours, on a GPU without a network.
#
#   bash tests/upstream/on_gpu.sh OUT_DIR upstream-VERSION.tar.xz ...
#
# Archives are pack.py's; python3 is the machine's own, with its torch. A command that fails stops none of the others.
# OUT_DIR gets one JSON file a command; `PYTHONPATH=. python tests/upstream/table.py` sets the verdicts side by side.
# DEVICE=cpu PRESET=tiny rehearses it; STEPS is the timesteps of the large run, ROUNDS the alternations of the timing,
# PARTS which of "2 3 large forwards" to run.
# Exit status: 0 if every command ended with a verdict (pass or fail) or a measurement.
set -u
[ $# -ge 2 ] || { echo "usage: on_gpu.sh OUT_DIR ARCHIVE ..." >&2; exit 2; }
mkdir -p "$1" && out=$(realpath "$1") || exit 2
shift
archives=()
for archive in "$@"; do
    archives+=("$(realpath -e "$archive")") || exit 2
done
device=${DEVICE:-cuda} large=${PRESET:-7b} steps=${STEPS:-20} rounds=${ROUNDS:-7}
parts=" ${PARTS:-2 3 large forwards} "
cd "$(dirname "$0")/../.." || exit 2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
status=0
# Nothing is asked of a network, and of other frameworks than torch nothing is imported.
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 USE_TF=0 USE_FLAX=0

unpack() { # archive, folder; not every image has xz
    tar xJf "$1" -C "$2" 2>/dev/null ||
        python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="data")' "$1" "$2"
}

attempt() { # part, name, most seconds, what the exit status may be, command
    local name=$2 most=$3 fine=$4 began=$SECONDS code
    [[ $parts == *" $1 "* ]] || return 0
    shift 4
    timeout -k 10 "$most" "$@" >"$scratch/$name.log" 2>&1
    code=$?
    echo "== $name: exit $code after $((SECONDS - began)) s"
    grep -vE '^[a-z_ ]+: [0-9]+ of [0-9]+( in .*)?$' "$scratch/$name.log" | cut -c1-300 | tail -n "${LINES_EACH:-22}"
    case " $fine " in *" $code "*) ;; *) status=1 ;; esac
}

for archive in "${archives[@]}"; do
    version=$(basename "$archive" .tar.xz) && version=${version#upstream-}
    site=$scratch/$version
    mkdir "$site"
    unpack "$archive" "$site" || { status=1; continue; }
    export PYTHONPATH=$site
    name=upstream-$version-${NAME:-$device}
    common=(--target vllm_omni --device "$device" --timeout 240)
    attempt 2 "$name-2" 260 "0 1" python3 -m verify run "${common[@]}" --world-size 2 --json "$out/$name-2.json"
    attempt 3 "$name-3" 260 "0 1" python3 -m verify run "${common[@]}" --world-size 3 --cfg-img-scale 1.5 \
        --json "$out/$name-3.json"
    attempt large "$name-$large-2" 260 "0 1" python3 -m verify run "${common[@]}" --world-size 2 --preset "$large" \
        --num-timesteps "$steps" --json "$out/$name-$large-2.json"
    attempt forwards "forwards-$version-$large-$device" 260 "0" python3 -m verify bench --forwards vllm_omni \
        --device "$device" --preset "$large" --alternations "$rounds" --timeout 240 \
        --json "$out/forwards-$version-$large-${NAME:-$device}.json"
    rm -rf "$site"
done
exit $status
