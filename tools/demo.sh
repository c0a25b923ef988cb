#!/usr/bin/env bash
# Shows recalld at work: sets up, builds, starts the daemon on a store of its own, appends eight months of chat, asks
# five questions whose answers lie months apart, has one answered by the model, looks inside, stops the daemon and removes the store.
# Usage: tools/demo.sh
# Can be run again: only what changed is built anew. Nothing is left behind but build/release.
set -euo pipefail
cd "$(dirname "$0")/.."

recalld=build/release/recalld
recall=build/release/recall
memory=chats/demo
results=3  # shown for each question

bold='' plain=''
if [[ -t 1 && -z ${NO_COLOR:-} ]]; then bold=$'\e[1m' plain=$'\e[0m'; fi
say() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
die() { printf 'demo: %s\n' "$*" >&2; exit 1; }

# ---- Whatever happens, the daemon ends and the store goes; a failure says where it stopped and what to do.
place=''
daemon=''
step='starting'
finish() {
  local status=$?
  trap - EXIT
  if [[ -n $daemon ]] && kill "$daemon" 2>/dev/null; then wait "$daemon" || true; fi
  if ((status > 128)); then
    printf '\ndemo: interrupted while %s\n' "$step" >&2
  elif ((status != 0)); then
    if [[ -n $place && -s $place/log ]]; then
      printf '\ndemo: the last lines of the daemon were\n' >&2
      tail -n 5 "$place/log" | sed 's/^/  /' >&2
    fi
    printf '\ndemo: failed while %s; what went wrong stands above\n' "$step" >&2
    printf 'demo: mend it, then run tools/demo.sh again; it goes on from what is built\n' >&2
  fi
  [[ -z $place ]] || rm -rf "$place"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step='installing what the build needs'
say 'Set up'
tools/setup.sh

step='building'
say 'Build into build/release (the first time takes some minutes)'
cmake --preset release >/dev/null
cmake --build --preset release --target recalld recall

# ---- The daemon, on a store that nobody else uses
step='starting the daemon'
place=$(mktemp -d "${TMPDIR:-/tmp}/recalld-demo.XXXXXX")
export RECALLD_SOCKET=$place/socket
say "Start recalld on a temporary store, $place/data"
"$recalld" --data "$place/data" --socket "$RECALLD_SOCKET" --device cpu 2>"$place/log" &
daemon=$!
for ((tries = 0; ; ++tries)); do
  "$recall" health 2>/dev/null && break
  kill -0 "$daemon" 2>/dev/null || { daemon=''; die 'the daemon ended by itself'; }
  ((tries < 300)) || die 'the daemon does not answer after 30 s'
  sleep 0.1
done

# ---- Append
step='appending'
tools/demo_history.py >"$place/history.jsonl"
tools/demo_history.py --questions >"$place/questions"
turns=$(wc -l <"$place/history.jsonl")
day() { sed -n "$1s/.*\"time\": \"\([0-9-]*\)T.*/\1/p" "$place/history.jsonl"; }
say "Append $turns turns of chat, $(day 1) to $(day "$turns"), and wait until all of them can be found"
"$recall" append "$memory" "$place/history.jsonl" --wait

# ---- Search
step='searching'
asked=0 first=0
while IFS=$'\t' read -r turn question answer; do
  say "recall search $memory '$question' --limit $results"
  "$recall" search "$memory" "$question" --limit "$results"
  # The same search for the machine: the first result that cites the turn, its chunk, and whether it holds the answer.
  verdict=$("$recall" search "$memory" "$question" --json | python3 -c '
import json, sys
turn, answer, results = int(sys.argv[1]), sys.argv[2], json.load(sys.stdin)["results"]
cites = [any(source["turn"] == turn for source in result["turns"]) for result in results]
rank = cites.index(True) + 1 if True in cites else 0
result = results[max(rank, 1) - 1]
print(rank, result["chunk"], "whole" if answer in result["text"] else "cut")
' "$turn" "$answer")
  read -r rank chunk extent <<<"$verdict"
  asked=$((asked + 1))
  first=$((first + (rank == 1)))
  if ((rank == 0)); then
    found='NOT among the first 8 results'
  else
    found="result $rank cites it"
    if [[ $extent == cut ]]; then found+=", but the chunk ends inside it; recall turns shows it whole:"; fi
  fi
  printf '%s-> "%s" was told once, in turn %s on %s: %s%s\n' \
    "$bold" "$answer" "$turn" "$(day $((turn + 1)))" "$found" "$plain"
  if [[ $extent == cut ]]; then "$recall" turns "$memory" --from "$turn" --limit 1; fi
done <"$place/questions"

# ---- Ask: the model reads most plain facts out exactly, not all
step='asking'
while IFS=$'\t' read -r _ question answer; do
  say "recall ask $memory '$question'"
  "$recall" ask "$memory" "$question" </dev/null | tee "$place/answer"
  if [[ $(<"$place/answer") == "$answer" ]]; then
    printf '%s-> the model read "%s" out of the memory%s\n' "$bold" "$answer" "$plain"
  else
    printf '%s-> "%s" is what the memory says: this model does not read it out; a search shows it%s\n' "$bold" "$answer" "$plain"
  fi
done <"$place/questions"

# ---- Inspect
step='inspecting'
say "recall chunks $memory $chunk: all that is stored of the last chunk found"
"$recall" chunks "$memory" "$chunk"
say 'recall stats'
"$recall" stats

# ---- Stop
step='stopping the daemon'
say 'Stop recalld with SIGTERM'
kill -TERM "$daemon"
wait "$daemon" || die "the daemon ended with status $?"
daemon=''
tail -n 1 "$place/log"

say "Done: the right turn came first for $first of $asked questions"
cat <<TEXT
To go on with a store that stays:
  $recalld &
  $recall append notes FILE        # plain text, a turn a line, or JSON lines
  $recall search notes 'your question'
  $recall ask notes 'your question'
  $recall --help
TEXT
