#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Holds the tree to the rules of STYLE.md that a machine can check.
cd "${TF_SOURCE:?}" || exit 1
. tests/tap.sh

sources() {
	find lib proto store daemon client worker model kernels tools tests \
		\( -name '*.c' -o -name '*.h' -o -name '*.def' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' \) \
		! -name '*.pb-c.*' | sort
}

rules() {
	breaches=$(sources | LC_ALL=C.UTF-8 xargs awk -f tests/tidy.awk)
	[ -z "$breaches" ] || { printf '%s\n' "$breaches"; return 1; }
}

guards() {
	status=0
	for header in $(sources | grep '\.h$' | grep -v '\.inc\.h$'); do
		guard=$(printf %s "$header" | tr 'a-z/.-' 'A-Z___')
		grep -q "^#ifndef $guard\$" "$header" || { echo "$header: no guard $guard"; status=1; }
	done
	return $status
}

conditionals() {
	! grep -nE '^#[ \t]*if.*CUDA' $(sources | grep -v '^kernels/')
}

promises() {
	! grep -nE '\b(TODO|FIXME|XXX)\b' $(sources)
}

check 'sizes, includes and licence lines' rules
check 'header guards' guards
check 'no CUDA conditionals outside kernels/' conditionals
check 'no promises instead of code' promises
finish
