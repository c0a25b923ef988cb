#!/usr/bin/env bash
# Runs the tests of the CUDA kernels under compute-sanitizer: memcheck, racecheck and initcheck, each test a process of
# its own, many side by side, and says of each tool whether it found anything.
# Usage: tools/sanitize_gpu.sh BUILD_DIR [--tool NAME]... [--jobs N] [--within SECONDS] [--filter FILTER] [--all] [--logs DIR]
#   BUILD_DIR         a build with CUDA, such as build/release
#   --tool NAME       memcheck, racecheck or initcheck alone; may be given again
#   --jobs N          so many processes side by side, as many as the machine has cores unless given
#   --within SECONDS  no longer than that, 420 unless given; tests that have not ended by then are failures
#   --filter FILTER   of the kernels' tests these alone, as --gtest_filter has it
#   --all             also the tests that take too long under a tool (slow, below)
#   --logs DIR        keep what the tools print in DIR/TOOL/TEST.log
# The exit status is 0 only where every test has ended and no tool has found anything.
#
# What is looked at: all of kernels_cuda_test, and of model_cuda_test the tests of late interaction, whose kernel alone
# is watched there by racecheck and initcheck. racecheck and initcheck watch our own kernels (their names hold
# "recalld") and not cuBLASLt's (nvjet_*), whose copies by TMA and barriers in shared memory they do not follow; memcheck
# watches all.
#
# What is left out:
# - all tools, *OutOfBounds*: what is refused is not launched.
# - all tools, DeviceMemoryCuda.*: calls fail there that are meant to, and memcheck tells of any that does.
# - initcheck, MatmulCuda.*: it does not see what cuBLASLt's kernels write, so our kernel that compares their results
#   would read memory that nobody wrote.
# - racecheck, MatmulCuda.* and the test of late interaction that runs a whole model: on a Hopper GPU it breaks off in
#   cuBLASLt's kernels with an error of its own ("failed to handle a hardware exception"); memcheck watches these.
# - racecheck, the tests in `slow`: it takes a thousand times as long and more for kernels that keep to shared memory,
#   so that these alone would take minutes. The same kernels run in smaller shapes of the other tests, all of the
#   paths of attention in HsaAttentionCuda.FewTokensOfEveryPathAgreeWithTheCpu.
# initcheck runs with RECALLD_TEST_UNFILLED, as the tests' arrays are otherwise filled before a kernel sees them. Tests
# that look at what they were filled with fail then: of initcheck only what the tool says counts. The test in `timed`
# wants to see the host look while a kernel runs, which a tool may not let it: that alone may fail there.
set -euo pipefail

readonly slow='HsaAttentionCuda.AgreesWithTheCpuForAny*:HsaAttentionCuda.BitsDoNotDependOnTheSlots:'\
'LandmarkTopKBatchCuda.HasTheBitsAndTheOrderOfTheCpu:LandmarkTopKBatchCuda.AgreesWhereOnlyASampleSetsTheFloor'
readonly unseen='MatmulCuda.*'
readonly timed=ChunkSelectionCuda.WhatIsToldOfALaneThatWaitsIsThereWithItsWordBeforeTheKernelEnds
readonly timed_wants='the host looked while the kernel ran'
readonly of_late='GpuLateTest.*' of_late_in_model=GpuRambaTest.ScoresChunksByTheTokensOfAQuestionWithTheBitsOfTheCpu

die() { printf 'sanitize_gpu: %s\n' "$*" >&2; exit 2; }

build='' tools=() jobs=$(nproc) within=420 filter='*' all=false logs=''
while (($# > 0)); do
  case $1 in
    --tool) tools+=("${2:?--tool wants memcheck, racecheck or initcheck}"); shift ;;
    --jobs) jobs=${2:?--jobs wants a number}; shift ;;
    --within) within=${2:?--within wants seconds}; shift ;;
    --filter) filter=${2:?--filter wants a filter of tests}; shift ;;
    --all) all=true ;;
    --logs) logs=${2:?--logs wants a directory}; shift ;;
    -*) die "unknown argument '$1'; see the head of $0" ;;
    *) build=$1 ;;
  esac
  shift
done
((${#tools[@]} > 0)) || tools=(memcheck racecheck initcheck)
for tool in "${tools[@]}"; do
  [[ $tool == memcheck || $tool == racecheck || $tool == initcheck ]] || die "there is no tool '$tool' here"
done
[[ -n $build ]] || die "which build? see the head of $0"
[[ -x $build/tests/kernels_cuda_test ]] || die "there is no $build/tests/kernels_cuda_test; build with CUDA first"
command -v compute-sanitizer >/dev/null || die "compute-sanitizer is not in PATH; it comes with the CUDA toolkit"
if [[ -z $logs ]]; then
  logs=$(mktemp -d)
  trap 'rm -rf "$logs"' EXIT
fi

mkdir -p "$logs"

# What this compute-sanitizer calls its options.
help=$(compute-sanitizer --help 2>&1 || true)
watch=--kernel-name
grep -q -e "$watch" <<<"$help" || watch=--kernel-regex
host_copies=()
if grep -q -e --check-api-memory-access <<<"$help"; then
  host_copies=(--check-api-memory-access no)  # a test may copy more to the host than it looks at
fi
has_ports=false
if grep -q -e --port <<<"$help"; then has_ports=true; fi

# tests_of PROGRAM FILTER: their names, one a line; none where the program is not there
tests_of() {
  [[ -x $build/tests/$1 ]] || return 0
  "$build/tests/$1" --gtest_list_tests --gtest_filter="$2" |
    awk '/^[^ ]/ { suite = $1; next } /^  / { print suite $1 }'
}

# fails_by_time_alone TEST LOG: whether nothing else failed in it
fails_by_time_alone() {
  [[ $1 == "$timed" ]] && grep -q "^$timed_wants" "$2" && (($(grep -c ': Failure$' "$2") == 1))
}

# run NUMBER TOOL PROGRAM TEST: what becomes of it goes to LOG.state, as one word
run() {
  local number=$1 tool=$2 program=$3 test=$4 rc=0 state command
  local log=$logs/$tool/${test//\//_}.log left=$((end - $(date +%s)))
  if ((left < 3)); then
    echo late >"${log%.log}.state"
    return
  fi
  command=(compute-sanitizer --tool "$tool" --error-exitcode 99 --print-limit 20)
  # Ports of its own, should it talk to the test by TCP.
  if $has_ports; then command+=(--port $((49152 + number % 500 * 32))); fi
  if [[ $program == model_cuda_test && $tool != memcheck ]]; then
    command+=("$watch" kns=late_kernel)
  elif [[ $tool != memcheck ]]; then
    command+=("$watch" kns=recalld)
  fi
  local -x RECALLD_TEST_UNFILLED=
  if [[ $tool == initcheck ]]; then
    RECALLD_TEST_UNFILLED=1
    command+=("${host_copies[@]}")
  fi
  local begun=$SECONDS
  timeout --kill-after=5 "$left" "${command[@]}" "$build/tests/$program" --gtest_filter="$test" >"$log" 2>&1 || rc=$?
  echo "took $((SECONDS - begun)) s, exit status $rc" >>"$log"
  if ((rc == 124 || rc == 137)); then
    state=late
  elif grep -q 'SUMMARY: [1-9]' "$log"; then
    state=found
  elif ! grep -q 'SUMMARY: 0 ' "$log" || grep -q 'Internal Sanitizer Error' "$log" || ! grep -q '^\[==========\] 1 test ' "$log"; then
    state=broken
  elif grep -q '^\[  SKIPPED \]' "$log"; then
    state=skipped
  elif [[ $tool != initcheck ]] && ((rc != 0)) && ! fails_by_time_alone "$test" "$log"; then
    state=failed
  else
    state=clean
  fi
  echo "$state" >"${log%.log}.state"
}

# Those first that take longest, so that none of them is left for the end.
for tool in "${tools[@]}"; do
  rm -rf "${logs:?}/$tool"
  mkdir -p "$logs/$tool"
  without='*OutOfBounds*:DeviceMemoryCuda.*'
  if [[ $tool != memcheck ]]; then without+=:$unseen; fi
  if [[ $tool == racecheck ]] && ! $all; then without+=:$slow; fi
  if [[ $filter == *-* ]]; then without=:$without; else without=-$without; fi
  for test in $(tests_of kernels_cuda_test "$filter$without"); do
    case $test in
      Hsa* | Swa*) rank=0 ;;
      Ssd* | LandmarkTopKBatch* | Matmul*) rank=1 ;;
      *) rank=2 ;;
    esac
    if [[ $tool == racecheck ]]; then rank=$((rank * 2)); else rank=$((rank * 2 + 1)); fi
    echo "$rank $tool kernels_cuda_test $test"
  done
  if [[ $filter == '*' ]]; then
    of_model=$of_late
    if [[ $tool != racecheck ]]; then of_model+=:$of_late_in_model; fi
    for test in $(tests_of model_cuda_test "$of_model"); do echo "3 $tool model_cuda_test $test"; done
  fi
done | sort -n -s -k1,1 >"$logs/queue"
[[ -s $logs/queue ]] || die "no test of that name"
printf '%s tests under %s, %s side by side, at most %s s\n' "$(wc -l <"$logs/queue")" "${tools[*]}" "$jobs" "$within"

end=$(($(date +%s) + within))
export build logs end watch has_ports timed timed_wants
export -f run fails_by_time_alone
export host_copies_joined="${host_copies[*]:-}"
# An array does not go through the environment.
# shellcheck disable=SC2016
cut -d' ' -f2- "$logs/queue" | awk '{ print NR, $0 }' |
  xargs -P "$jobs" -L 1 bash -c 'read -ra host_copies <<<"$host_copies_joined"; run "$@"' run || true

failed=false
for tool in "${tools[@]}"; do
  declare -A count=([clean]=0 [found]=0 [failed]=0 [broken]=0 [skipped]=0 [late]=0)
  total=0
  while read -r _ of _ test; do
    [[ $of == "$tool" ]] || continue
    state_file=$logs/$tool/${test//\//_}.state
    state=broken
    if [[ -s $state_file ]]; then state=$(<"$state_file"); fi
    count[$state]=$((count[$state] + 1))
    total=$((total + 1))
    case $state in
      found)
        printf '  %s %s: %s\n' "$tool" "$test" "$(grep -m1 'SUMMARY: ' "$logs/$tool/${test//\//_}.log")"
        grep -E -m4 '(Error|Warning|Uninitialized|Invalid|Race|race|hazard)|^=+ +at ' "$logs/$tool/${test//\//_}.log" |
          sed 's/^/    /' | cut -c1-200 ;;
      failed) printf '  %s %s: the test fails under it\n' "$tool" "$test" ;;
      broken) printf '  %s %s: did not run to its end; see its log (--logs DIR)\n' "$tool" "$test" ;;
      late) printf '  %s %s: did not end in time\n' "$tool" "$test" ;;
      skipped) printf '  %s %s: skipped, there is no GPU\n' "$tool" "$test" ;;
    esac
  done <"$logs/queue"
  if ((total == 0)); then
    printf '%s: no test of that filter\n' "$tool"
  elif ((count[clean] == total)); then
    printf '%s: passed, %d tests\n' "$tool" "$total"
  else
    printf '%s: FAILED: of %d tests %d clean, %d with findings, %d failing, %d broken off, %d skipped, %d not ended\n' \
      "$tool" "$total" "${count[clean]}" "${count[found]}" "${count[failed]}" "${count[broken]}" "${count[skipped]}" \
      "${count[late]}"
    failed=true
  fi
done
printf 'slowest: '
grep -H '^took ' "$logs"/*/*.log | sed -E 's|^.*/([^/]+)/([^/]+)\.log:took ([0-9]+) s.*|\3 \1 \2|' | sort -rn | head -8 |
  awk '{ printf "%s%s %s %s s", (NR > 1 ? ", " : ""), $2, $3, $1 } END { print "" }' || true
if $failed; then exit 1; fi
