#!/usr/bin/env bash
# Checks what the compiler does not: that includes point one way, that sources are formatted, and, on demand, lint.
# Usage: tools/check.sh [--tidy] [--arrows | --format] [--root DIR]
#   --arrows      check the include arrows alone, and that the model has pinned memory from its eraser alone
#   --format      check the format alone
#   --tidy        run clang-tidy as well (minutes; wants build/release configured)
#   --root DIR    check the tree in DIR instead of this one
set -euo pipefail

# What each folder may include from the project. Tests and tools may include everything.
declare -A may_include=(
  [base]="base"
  [kernels]="base kernels"
  [model]="base kernels model"
  [memstore]="base kernels memstore"
  [daemon]="base model memstore daemon"
  [client]="base client"
)

root=$(cd "$(dirname "$0")/.." && pwd)
tidy=false arrows=true format=true
while (($# > 0)); do
  case $1 in
    --tidy) tidy=true ;;
    --arrows) format=false ;;
    --format) arrows=false ;;
    --root) root=${2:?--root wants a directory}; shift ;;
    *) echo "check: unknown argument '$1'; see the head of $0" >&2; exit 2 ;;
  esac
  shift
done
cd "$root"

sources() {  # sources [FOLDER...]: our own C++ and CUDA files, also outside a git checkout
  if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    git ls-files --cached --others --exclude-standard -- "$@"
  else
    find "${@:-.}" -path ./build -prune -o -type f -print
  fi | grep -E '\.(h|cc|cu|cuh)$' || true
}

failed=false

check_arrows() {
  local folder file line target
  for folder in "${!may_include[@]}"; do
    [[ -d $folder ]] || continue
    while IFS= read -r file; do
      while IFS=: read -r line target; do
        [[ " ${may_include[$folder]} " == *" $target "* ]] && continue
        echo "$file:$line: $folder must not include $target/ (it may include: ${may_include[$folder]})"
        failed=true
      done < <(sed -nE 's|^[[:space:]]*#[[:space:]]*include[[:space:]]*"(\.\./)*([a-z]+)/.*|\2|;T;=;p' "$file" |
        paste -d: - - | grep -E ":($(IFS='|'; echo "${!may_include[*]}"))$" || true)
    done < <(sources "$folder")
  done
}

# What may have to be forgotten lies in buffers that one owner overwrites (kernels/scratch_buffers.h).
check_pinned() {
  local found
  found=$(sources model | xargs -r grep -nE 'PinnedBuffer|cudaHostAlloc|cudaMallocHost|cudaHostRegister' /dev/null || true)
  [[ -n $found ]] || return 0
  sed -E 's/^([^:]*:[0-9]+):.*/\1: model must take pinned memory from cuda::PinnedScratch, which overwrites it/' <<<"$found"
  failed=true
}

check_format() {
  local formatter
  # Other versions format differently: 14 is Debian 12's.
  formatter=$(command -v clang-format-14 || command -v clang-format || true)
  if [[ -z $formatter ]] || ! "$formatter" --version | grep -q 'version 14\.'; then
    echo "format: not checked, clang-format 14 is not installed (tools/setup.sh --dev installs it)"
    return
  fi
  local -a complaints
  mapfile -t complaints < <(sources | xargs -r "$formatter" --dry-run -Werror 2>&1 |
    sed -nE 's/^(.*):([0-9]+):[0-9]+: error: .*/\1:\2/p' | sort -u -t: -k1,1)
  ((${#complaints[@]} > 0)) || return 0
  echo "format: these files differ from what .clang-format says, first at"
  printf '  %s\n' "${complaints[@]}"
  echo "run: $(basename "$formatter") -i FILE..."
  failed=true
}

check_tidy() {
  local linter
  linter=$(command -v clang-tidy-16) || {
    echo "tidy: clang-tidy 16 is not installed; run tools/setup.sh --dev" >&2
    exit 2
  }
  [[ -f build/release/compile_commands.json ]] || {
    echo "tidy: build/release is not configured; run cmake --preset release" >&2
    exit 2
  }
  # Clang 16 is Debian 12's newest, and the first that reads std::expected of GCC 12's library; yet it calls C++23 c++2b and
  # announces an older state of concepts, which hides std::expected. Boost.Asio does not count on its coroutines.
  sources base kernels model memstore daemon client | grep '\.cc$' |
    xargs -r -n 1 -P "$(nproc)" "$linter" -p build/release --quiet --extra-arg=-std=c++2b \
      --extra-arg=-U__cpp_concepts --extra-arg=-D__cpp_concepts=202002L --extra-arg=-Wno-builtin-macro-redefined \
      --extra-arg=-DBOOST_ASIO_HAS_CO_AWAIT --extra-arg=-DBOOST_ASIO_HAS_STD_COROUTINE || failed=true
}

if $arrows; then check_arrows; check_pinned; fi
if $format; then check_format; fi
if $tidy; then check_tidy; fi
if $failed; then
  echo "check: failed" >&2
  exit 1
fi
echo "check: fine"
