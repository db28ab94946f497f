#!/bin/sh
# What is claimed of correctness, at full length: about two hours on two cores. Each step writes its
# output to build/thorough and says at the end whether it passed; all of them run in any case.
set -u
cd "$(dirname "$0")/.."
out=build/thorough
mkdir -p "$out"
failed=

step() {
    name=$1
    shift
    printf '==> %s ... ' "$name"
    begun=$(date +%s)
    if "$@" > "$out/$name.log" 2>&1; then verdict=passed; else verdict=FAILED failed="$failed $name"; fi
    printf '%s, %d s; %s\n' "$verdict" "$(($(date +%s) - begun))" "$(tail -n 1 "$out/$name.log")"
}

export MLXCONE_TEST_PROFILE=thorough
tests() { "$PY" -m pytest -q --numprocesses=auto "$@"; }
step lanes tests tests/test_random_lanes.py
step fuzz tests tests/test_fuzz.py
step gradients tests tests/test_hard_gradients.py
step threads tests tests/test_load.py
step compiled tests tests/test_repeated.py
unset MLXCONE_TEST_PROFILE
step layers-float32 "$PY" bench/accuracy.py
step layers-float64 "$PY" bench/accuracy.py --dtype float64
step memory "$PY" bench/training_load.py --steps 5000
[ -z "${DATA:-}" ] || step real-problems "$PY" bench/real_problems.py --peers --data "$DATA"
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
