#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# libtransfuse from a program of its own, and many jobs at once from a file.
. "${TF_SOURCE:?}/tests/tap.sh"
: "${TF_BUILD:?}"
folder=$(mktemp -d "${TMPDIR:-/tmp}/tf-library.XXXXXX") || exit 1
daemon=
trap '[ -z "$daemon" ] || { kill "$daemon" && wait "$daemon"; } 2>/dev/null; rm -rf "$folder"' EXIT
unset TRANSFUSE_ENDPOINT
TRANSFUSE_STATE=$folder/state HOME=$folder/home XDG_CONFIG_HOME=
export TRANSFUSE_STATE HOME XDG_CONFIG_HOME
cli=$TF_BUILD/transfuse

only_its_own() {
	strange=$(nm -g --defined-only "$TF_BUILD/libtransfuse.a" | awk 'NF == 3 && $3 !~ /^transfuse_/')
	[ -z "$strange" ] || { echo "$strange"; return 1; }
}
lines() { for i in $(seq "$1"); do printf '{"noop": {}, "name": "n%d"}\n' "$i"; done; }

check 'the library shows its own functions alone' only_its_own
check 'no daemon is said' answers 1 'no daemon' "$TF_BUILD/tests/client/many_jobs"

"$TF_BUILD/transfused" --state "$folder/state" --map-mib 16 --slots 2 >"$folder/log" 2>&1 &
daemon=$!
for i in $(seq 100); do "$cli" ping >/dev/null 2>&1 && break; sleep 0.1; done
check 'a program submits, waits, cancels, lists' answers 0 'a wrong spec: NoopSpec has no field' \
	"$TF_BUILD/tests/client/many_jobs"
check 'and lists thousands, page after page' answers 0 '2500 more jobs, the newest is 2510; 2500 of them are listed' \
	"$TF_BUILD/tests/client/many_jobs" 2500
"$cli" drain >/dev/null
lines 1200 >"$folder/jobs"
check 'a file of jobs' answers 0 '1200 jobs are submitted: ' "$cli" submit --batch "$folder/jobs"
check 'a batch from a pipe, as JSON' answers 0 '^{"jobs": *\[[0-9]*, *[0-9]*\]}$' \
	sh -c "(echo; echo '{\"noop\": {}, \"name\": \"piped\"}'; echo; printf %s '{\"noop\": {}}') | \"$cli\" submit --batch - --json"
all() { "$cli" jobs --limit 10000 --json >"$folder/list" && grep -o '"name": *"n1200"' "$folder/list" | grep -c . ; }
check 'all of them are there' all
printf '{"noop": {}}\n{"noop": {"minutes": 3}}\n' >"$folder/wrong"
check 'a mistake is told with its line' answers 2 "line 2: NoopSpec has no field 'minutes'" "$cli" submit --batch "$folder/wrong"
printf '{"noop": {}}\n{"noop": {}, "retries": 99}\n' >"$folder/wrong"
check 'a wrong value likewise' answers 2 'line 2.*retries' "$cli" submit --batch "$folder/wrong"
printf '{"noop": {}}\nnothing\n' >"$folder/wrong"
check 'and what is no JSON' answers 2 'line 2: not JSON' "$cli" submit --batch "$folder/wrong"
printf '{"noop": {}}\n{"noop": {}, "after": [99999]}\n' >"$folder/wrong"
count() { "$cli" jobs --limit 10000 --json | grep -o '"state"' | wc -l; }
before=$(count)
check 'a job that the daemon refuses' answers 4 '99999' "$cli" submit --batch "$folder/wrong"
check 'leaves none of its batch' [ "$(count)" = "$before" ]
printf '\n\n' >"$folder/wrong"
check 'an empty file' answers 2 'no line with a job' "$cli" submit --batch "$folder/wrong"
check 'no file' answers 2 'expects --batch' "$cli" submit
check 'nor is anything said of jobs when the file is not there' sh -c "[ -z \"\$('$cli' submit --batch '$folder/none' --json 2>/dev/null)\" ]"
finish
