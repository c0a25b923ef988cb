#!/usr/bin/env bash
# tools/check.sh must notice an include against the arrows and pinned memory that nobody overwrites, name it, and let the
# allowed ones pass.
# Usage: check_test.sh SOURCE_DIR
set -euo pipefail
check=$1/tools/check.sh
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree"/{base,model,memstore,daemon,client,tests}

expect_fine() {
  "$check" --arrows --root "$tree" >"$tree/out" 2>&1 || { cat "$tree/out"; echo "a tree without a breach was refused: $1"; exit 1; }
}
expect_breach() {  # expect_breach FILE:LINE FOLDER
  if "$check" --arrows --root "$tree" >"$tree/out" 2>&1; then
    echo "not noticed: $1 includes $2"; exit 1
  fi
  grep -q "^$1: .*must not include $2/" "$tree/out" || { cat "$tree/out"; echo "not named: $1 includes $2"; exit 1; }
}

printf '#include <vector>\n#include "base/error.h"\n#include "model/ramba.h"\n' >"$tree/model/ramba.cc"
printf '#include "model/ramba.h"\n#include "memstore/store.h"\n' >"$tree/daemon/engine.cc"
printf '#include "daemon/engine.h"\n#include "client/client.h"\n' >"$tree/tests/anything_test.cc"
expect_fine "allowed includes"

printf '// text\n#include "memstore/store.h"\n' >"$tree/model/breach.h"
expect_breach model/breach.h:2 memstore
rm "$tree/model/breach.h"

printf '  #  include  "model/ramba.h"\n' >"$tree/memstore/breach.cc"
expect_breach memstore/breach.cc:1 model
rm "$tree/memstore/breach.cc"

printf '#include "../daemon/requests.h"\n' >"$tree/client/breach.h"
expect_breach client/breach.h:1 daemon
rm "$tree/client/breach.h"

printf '#include "kernels/bf16.h"\n' >"$tree/base/breach.cu"
expect_breach base/breach.cu:1 kernels
rm "$tree/base/breach.cu"

printf '#pragma once\ncuda::PinnedScratch fine;\ncuda::PinnedBuffer breach;\n' >"$tree/model/breach.h"
if "$check" --arrows --root "$tree" >"$tree/out" 2>&1; then echo "not noticed: a pinned buffer of the model's own"; exit 1; fi
grep -q '^model/breach.h:3: model must take pinned memory' "$tree/out" || { cat "$tree/out"; echo "not named"; exit 1; }
[[ $(grep -c '^model/breach.h' "$tree/out") == 1 ]] || { cat "$tree/out"; echo "PinnedScratch was refused"; exit 1; }
rm "$tree/model/breach.h"

expect_fine "the breaches are gone"
