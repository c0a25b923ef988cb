#!/usr/bin/env bash
# Installs the client package into a temporary prefix, then configures, builds and runs a project that finds it there.
# Usage: package_test.sh CMAKE BUILD_DIR CONSUMER_DIR CXX_COMPILER CXX_FLAGS
set -euo pipefail
cmake=$1 build=$2 consumer=$3 compiler=$4 flags=$5
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$cmake" --install "$build" --prefix "$work/prefix" --component client
# Ninja is what this tree is built with; a machine that was set up for it need not have make.
"$cmake" -G Ninja -S "$consumer" -B "$work/build" -DCMAKE_PREFIX_PATH="$work/prefix" \
  -DCMAKE_CXX_COMPILER="$compiler" -DCMAKE_CXX_FLAGS="$flags"
"$cmake" --build "$work/build"
answer=$("$work/build/consumer")
echo "$answer"
case $answer in
  *"no daemon at /nonexistent/recalld.sock"*) ;;
  *) echo "the consumer's answer does not say that there is no daemon" >&2; exit 1 ;;
esac
