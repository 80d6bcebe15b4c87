#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The daemon's own log with --background: put aside at a size, the oldest part goes.
. "${TF_SOURCE:?}/tests/tap.sh"
: "${TF_BUILD:?}"
folder=$(mktemp -d "${TMPDIR:-/tmp}/tf-log.XXXXXX") || exit 1
state=$folder/state
daemon=
trap '[ -z "$daemon" ] || kill "$daemon" 2>/dev/null; rm -rf "$folder"' EXIT
unset TRANSFUSE_ENDPOINT
TRANSFUSE_STATE=$state HOME=$folder/home
export TRANSFUSE_STATE HOME
mkdir "$HOME"

# Waits until the command succeeds.
until_so() {
	for i in $(seq 600); do
		"$@" && return 0
		sleep 0.05
	done
	ls -l "$state"; return 1
}
size() { wc -c <"$state/$1"; }
is_new() { [ "$(size daemon.log)" -lt 262144 ]; }

begin() { "$TF_BUILD/transfused" --background --state "$state" --map-mib 16 --nvml off --daemon-log-mib 1; }
check 'a daemon in the background' begin
daemon=$(tr -dc 0-9 <"$state/lock")

# Five times more than a quarter of the bound.
fill() {
	for n in 1 2 3 4 5; do
		{ head -c 270000 /dev/zero | tr '\0' x; echo "mark $n"; } >>"$state/daemon.log"
		until_so is_new || return 1
		grep -q "mark $n" "$state/daemon.log.1" || { echo "mark $n is not in daemon.log.1"; return 1; }
	done
}
check 'a log that is full is put aside' fill
bounded() {
	[ -e "$state/daemon.log.3" ] && [ ! -e "$state/daemon.log.4" ] || { ls "$state"; return 1; }
	grep -q 'mark 3' "$state/daemon.log.3" || return 1
	[ "$(cat "$state"/daemon.log* | wc -c)" -le 1048576 ]
}
check 'so many parts are kept and no more' bounded
goes_on() {
	kill -HUP "$daemon" || return 1
	until_so grep -q 'the configuration was read again' "$state/daemon.log"
}
check 'the log goes on in the new file' goes_on
cannot() {
	for n in 1 2 3; do
		rm -f "$state/daemon.log.$n" && mkdir -p "$state/daemon.log.$n/in-the-way" || return 1
	done
	head -c 270000 /dev/zero | tr '\0' x >>"$state/daemon.log"
	until_so is_new || return 1
	grep -q 'cannot be put aside' "$state/daemon.log"
}
check 'one that cannot be put aside is emptied' cannot
finish
