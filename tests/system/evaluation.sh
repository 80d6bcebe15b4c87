#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The commands of doc/evaluation.md, word for word, against a daemon with real workers.
set -u
. "${TF_SOURCE:?}/tests/tap.sh"
. "$TF_SOURCE/tests/system/daemon.sh"
start_daemon --slots 2 --map-mib 64 --data-map-mib 64

awk '/^```sh$/ { on = 1; next } /^```$/ { on = 0 } on' "$TF_SOURCE/doc/evaluation.md" >"$work/script"
cd "$work" || exit 1
runs() { sh "$work/script" >"$work/out" 2>&1 || { tail -20 "$work/out"; return 1; }; }
check 'the script runs' runs

study() {
	cat study.txt
	[ "$(grep -c '^ *[0-9]* *eval *mine:[123]0 *done ' study.txt)" -eq 3 ]
}
check 'every checkpoint has a row' study
each() { cat each.txt; [ "$(grep -c '^ *[0-9]* *eval *each-1:[123]0 *done ' each.txt)" -eq 3 ]; }
check 'likewise of the file' each
# Eight jobs and a head; four of them have a perplexity, of models that differ in two settings.
table() {
	cat rates.csv
	head -1 rates.csv | grep -q '^job,kind,model,state,model.layers,train.lr,' || return 1
	[ "$(wc -l <rates.csv)" -eq 9 ] && [ "$(grep -c ',train,rates-[1-4],done,' rates.csv)" -eq 4 ] &&
		[ "$(grep -c ',eval,rates-[1-4]:best,done,[12],0.00[13],' rates.csv)" -eq 4 ]
}
check 'the sweep has its table' table
best() {
	grep 'the best is' out || return 1
	chosen=$(sed -n 's/^the best is //p' out)
	transfuse compare --tag rates --kind eval --json | tr '{' '\n' | sed -n 's/.*"perplexity":\([0-9.e+]*\).*/\1/p' |
		sort -g >perplexities
	cat perplexities
	[ "$(wc -l <perplexities)" -eq 4 ] || return 1
	of=$(transfuse compare --tag rates --kind eval --json | tr '}' '\n' | tr -d '\n' | sed 's/"id"/\n"id"/g' |
		grep -F "\"$chosen\"" | sed -n 's/.*"perplexity":\([0-9.e+]*\).*/\1/p')
	[ "$of" = "$(head -1 perplexities)" ]
}
check 'the best one is the best' best
check 'and writes' test -s best/texts.jsonl
finish
