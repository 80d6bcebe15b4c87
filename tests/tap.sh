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
finish() { echo "1..$tap_count"; [ "$tap_failed" -eq 0 ]; }
