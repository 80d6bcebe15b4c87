#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The tests that doc/limits.md and doc/security.md name are there.
set -u
. "${TF_SOURCE:?}/tests/tap.sh"
source=$TF_SOURCE

named() { grep -oE '`(test_[a-z_]+ [a-z_]+|[a-z_]+\.sh)`' "$source/doc/$1" | tr -d '`' | sort -u; }
there() {
	status=0 count=0
	while read -r program test; do
		count=$((count + 1))
		file=$(find "$source/tests" -name "$program" -o -name "$program.c")
		[ -n "$file" ] && { [ -z "$test" ] || grep -q "^static void $test(void" "$file"; } ||
			{ echo "$1 names $program $test"; status=1; }
	done < <(named "$1")
	[ "$count" -gt 5 ] && return $status
}
check 'the tests of doc/limits.md' there limits.md
check 'the tests of doc/security.md' there security.md
rows() { ! grep -nE '^\|' "$source/doc/limits.md" | grep -vE '\| what \||\|---|`(test_[a-z_]+ [a-z_]+|[a-z_]+\.sh)`[^|]*\|$'; }
check 'each row of doc/limits.md has a test' rows
finish
