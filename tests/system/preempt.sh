#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A training of low priority steps back for a job of a higher class, is queued again by itself, goes on, and
# ends with the bytes of one that was left alone. Its record says how often it stepped back.
set -u
. "${TF_SOURCE:?}/tests/tap.sh"
. "$TF_SOURCE/tests/system/daemon.sh"
# A held training takes a few steps and no more: it cannot have ended before it is to step back.
export TF_HOLD=$work/held
mkdir "$TF_HOLD"
start_daemon --slots 1 --map-mib 64 --data-map-mib 64 --preempt-after-seconds 0

for i in $(seq 200); do echo "the $i. line says that $((i * 7919 % 1000)) comes after $((i * 31 % 100))"; done \
	>"$work/lines.txt"
cat >"$work/model.yaml" <<END
model: {layers: 2, dim: 32, heads: 2, ff: 64, precision: f32}
train: {steps: 1200, sequence: 64, batch: 2, warmup: 5, lr: 1e-3}
save: {every: 5000, keep_last: 2}
eval: {every: 0}
data: [{name: lines}]
END
must transfuse tokenizer train words --from "$work/lines.txt" --pieces 300
must transfuse data import lines "$work/lines.txt" --tokenizer words
must transfuse train alone "$work/model.yaml"
echo 300 >"$TF_HOLD/train-step"
transfuse train disturbed "$work/model.yaml" --priority low --json >"$work/submitted"
id=$(sed -n 's/^ *{\{0,1\} *"id": *\([0-9]*\).*/\1/p' "$work/submitted")

# It has begun to train, and has not ended.
trains() {
	for _ in $(seq 3000); do
		transfuse show "$id" --json | grep -q '"phase": *"training"' && return 0
		sleep 0.02
	done
	return 1
}
stepped_back() {
	trains || return 1
	must transfuse noop --priority high
	rm "$TF_HOLD/train-step"
	transfuse show "$id" --json >"$work/between"
	transfuse wait "$id" >/dev/null 2>&1 || return 1
	transfuse show "$id" --json >"$work/after"
	cat "$work/between" "$work/after"
	grep -q '"reason": *"preempt", *"times": *[1-9]' "$work/after"
}
# The bytes of a model's last checkpoint, as one hash.
weights_of() {
	transfuse model export "$1" -o "$work/$1" >/dev/null 2>&1 || return 1
	(cd "$work/$1" && find . -path '*step-00001200*' -name '*.safetensors' | sort | xargs cat | sha256sum)
}
same_bytes() {
	alone=$(weights_of alone) && disturbed=$(weights_of disturbed) || return 1
	echo "$alone $disturbed"
	[ "$alone" = "$disturbed" ] && ! grep -q '^e3b0c44298fc1c14' <<<"$alone"
}

check 'a training steps back for a higher class and goes on' stepped_back
check 'it gives the bytes of one left alone' same_bytes
finish
