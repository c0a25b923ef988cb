#!/usr/bin/env bash
# Sets up, builds and runs the whole test suite. Can be run again: only what changed is built anew.
# Usage: tools/test.sh [--sanitizers] [--as-user NAME] [CTEST_ARGUMENT...]
#   --sanitizers   run the suite under address and undefined-behaviour, and under thread sanitizers too
#   --as-user NAME run the test executables of the release preset again as this ordinary user (root may), with 64 KiB of
#                  locked memory and 256 open files
#   anything else goes to ctest, such as -R Store
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '== %s\n' "$*"; }
trap 'printf "test.sh: failed; what went wrong stands above, and the same command can be run again\n" >&2' ERR

presets=(release)
user=
while true; do
  case ${1:-} in
    --sanitizers) presets+=(asan tsan); shift ;;
    --as-user) user=${2:?--as-user needs the name of a user}; shift 2 ;;
    *) break ;;
  esac
done

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

if [[ -n $user ]]; then
  say "preset release: test as $user"
  temporary=$(mktemp -d)
  trap 'rm -rf "$temporary"' EXIT
  chown "$user" "$temporary"
  for test in "$PWD"/build/release/tests/*_test; do
    runuser -u "$user" -- env TMPDIR="$temporary" HOME="$temporary" \
      bash -c 'ulimit -l 64 && ulimit -n 256 && exec "$0" --gtest_brief=1' "$test"
  done
fi
