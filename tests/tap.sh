# SPDX-License-Identifier: Apache-2.0
# TAP for shell tests: source this, call `check NAME COMMAND...` (or ok/not_ok/skip), end with `finish`.
tap_count=0
tap_failed=0
ok() { tap_count=$((tap_count + 1)); echo "ok $tap_count - $1"; }
not_ok() { tap_count=$((tap_count + 1)); tap_failed=$((tap_failed + 1)); echo "not ok $tap_count - $1"; }
skip() { tap_count=$((tap_count + 1)); echo "ok $tap_count - $1 # SKIP $2"; }
# Runs the command; its output is shown as TAP comments when it fails.
check() {
	tap_name=$1; shift
	if tap_out=$("$@" 2>&1); then ok "$tap_name"; else
		not_ok "$tap_name"; printf '%s\n' "$tap_out" | sed 's/^/# /'; fi
}
# status WANTED COMMAND...: it ends with this status; what it printed is in $out.
status() {
	wanted=$1; shift
	out=$("$@" 2>&1); got=$?
	[ "$got" -eq "$wanted" ] || { echo "status $got, expected $wanted: $out"; return 1; }
}
# says PATTERN: that is in $out.
says() { printf '%s' "$out" | grep -q -e "$1" || { echo "'$1' is not in: $out"; return 1; }; }
# answers WANTED PATTERN COMMAND...: both.
answers() {
	wanted=$1 pattern=$2; shift 2
	status "$wanted" "$@" && says "$pattern"
}
finish() { echo "1..$tap_count"; [ "$tap_failed" -eq 0 ]; }
