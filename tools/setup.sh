#!/usr/bin/env bash
# Installs what recalld needs to be built on Debian 12: only what is missing, and nothing else.
# Usage: tools/setup.sh [--dev]     --dev adds clang-format and clang-tidy for tools/check.sh
set -euo pipefail

packages=(
  # to build
  g++ cmake ninja-build pkg-config git python3
  # the store
  librocksdb-dev liburing-dev libisal-dev libxxhash-dev libicu-dev libstemmer-dev
  # the model
  libdnnl-dev libhwy-dev libsentencepiece-dev
  # the daemon and the command line
  libboost-dev nlohmann-json3-dev libspdlog-dev libcli11-dev libtomlplusplus-dev
  # the tests
  libgtest-dev libgmock-dev
)

say() { printf '== %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

case ${1:-} in
  '') ;;
  --dev) packages+=(clang-format-14 clang-tidy-16) ;;
  *) die "unknown argument '$1'; usage: tools/setup.sh [--dev]" ;;
esac

{ command -v apt-get && command -v dpkg-query; } >/dev/null ||
  die "this is not Debian: install what stands for these packages, then go on without this script: ${packages[*]}"

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null || true)
  [[ $status == ii* ]] || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
  say "all ${#packages[@]} packages are there"
  exit 0
fi

as_root=()
if ((EUID != 0)); then
  command -v sudo >/dev/null ||
    die "these packages are missing and neither root nor sudo is at hand; as root, run: apt-get install ${missing[*]}"
  as_root=(sudo)
fi

say "installing ${#missing[@]} of ${#packages[@]} packages: ${missing[*]}"
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@"; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT
{ apt update && apt install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 || {
  tail -n 20 "$log" >&2
  die "apt-get failed (its last lines stand above); see that the machine reaches a Debian 12 mirror, then run this again"
}
say "installed"
