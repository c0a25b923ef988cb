#!/usr/bin/env bash
# Crashes recalld at any number of points and counts what it lost: the power of a simulated disk is cut at every write
# and sync of a workload in turn, also during recovery, and the real daemon is killed at random moments.
# Usage: tools/crash.sh [N] [--seed S] [--kills K]
#   N             how many points, 10000 unless given
#   --seed S      the first seed, 1 unless given; each workload takes the next one
#   --kills K     how many of the points are kills of the daemon, N/100 unless given; the others are power cuts
# The last line sums up. The exit status is 1 when anything was lost; the lines above then say how to repeat it.
set -euo pipefail
cd "$(dirname "$0")/.."

points=10000 seed=1 kills=
while (($# > 0)); do
  case $1 in
    --seed) seed=${2:?--seed wants a number}; shift ;;
    --kills) kills=${2:?--kills wants a number}; shift ;;
    *[!0-9]*) echo "crash: unknown argument '$1'; see the head of $0" >&2; exit 2 ;;
    *) points=$1 ;;
  esac
  shift
done
kills=${kills:-$((points / 100))}
cuts_wanted=$((points > kills ? points - kills : 0))
kills_a_seed=25

if [[ ! -f build/release/build.ninja ]]; then cmake --preset release; fi
cmake --build --preset release --target crash_test
crash_test=build/release/tests/crash_test
output=$(mktemp)
trap 'rm -f "$output"' EXIT

cuts=0 killed=0 losses=0 last_seed=$seed
count() { sed -nE "s/^$1: .*[ ,]$2 ([0-9]+).*/\1/p" "$output" | tail -1; }  # count power\ cuts points: the number after it
# attempt NAME FILTER COUNTED VARIABLE=VALUE...: one run of the test; adds to losses, at least one when it fails
attempt() {
  local name=$1 filter=$2 status=0 lost
  shift 2
  env "$@" "$crash_test" --gtest_brief=1 --gtest_filter="$filter" >"$output" 2>&1 || status=$?
  if ((status == 0)); then
    grep "^$name: " "$output"
    return
  fi
  cat "$output"
  echo "repeat with: $* $crash_test --gtest_filter='$filter'"
  lost=$(count "$name" losses)
  losses=$((losses + (${lost:-0} > 0 ? lost : 1)))
}

if ((cuts_wanted > 0)); then
  attempt 'power cuts' 'PowerCut.*' RECALLD_CRASH_SEED="$seed" RECALLD_CRASH_POINTS="$cuts_wanted" RECALLD_CRASH_STRIDE=1
  cuts=$(count 'power cuts' points)
  last_seed=$(sed -nE 's/^power cuts: seeds [0-9]+ to ([0-9]+).*/\1/p' "$output")
fi
for ((kill_seed = seed; killed < kills; ++kill_seed)); do
  wanted=$((kills - killed < kills_a_seed ? kills - killed : kills_a_seed))
  attempt kills 'Kill.*' RECALLD_CRASH_SEED="$kill_seed" RECALLD_CRASH_KILLS="$wanted"
  done_now=$(count kills kills)
  if ((${done_now:-0} == 0)); then break; fi
  killed=$((killed + done_now))
  if ((kill_seed > last_seed)); then last_seed=$kill_seed; fi
done

echo "crash: seeds $seed to ${last_seed:-$seed}, points $((${cuts:-0} + killed)), kills $killed, losses $losses"
((losses == 0))
