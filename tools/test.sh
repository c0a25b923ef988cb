#!/usr/bin/env bash
# Sets up, builds and runs the whole test suite. Can be run again: only what changed is built anew.
# Usage: tools/test.sh [--sanitizers] [CTEST_ARGUMENT...]
#   --sanitizers   run the suite under address and undefined-behaviour, and under thread sanitizers too
#   anything else goes to ctest, such as -R Store
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '== %s\n' "$*"; }
trap 'printf "test.sh: failed; what went wrong stands above, and the same command can be run again\n" >&2' ERR

presets=(release)
if [[ ${1:-} == --sanitizers ]]; then
  presets+=(asan tsan)
  shift
fi

tools/setup.sh
for preset in "${presets[@]}"; do
  say "preset $preset: configure and build into build/$preset"
  cmake --preset "$preset"
  cmake --build --preset "$preset"
done
for preset in "${presets[@]}"; do
  say "preset $preset: test"
  ctest --preset "$preset" -j "$(nproc)" "$@"
done
