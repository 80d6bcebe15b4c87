#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# kill -9 of the daemon, of workers and of clients at random moments while jobs of all sorts are submitted,
# run and cancelled. Afterwards: no acknowledged job is lost, none completed twice or is stuck, every
# dataset is whole or absent, and every resumed training gives the bytes of the uninterrupted one.
#
# TF_KILLS: kills of each of the three (default 20); TF_SEED: of the moments, printed.
set -u
. "${TF_SOURCE:?}/tests/tap.sh"
build=${TF_BUILD:?}
kills=${TF_KILLS:-20}
seed=${TF_SEED:-$$}
RANDOM=$seed
echo "# $kills kills of each, TF_SEED=$seed"

[ -x "$build/tools/emoji" ] && [ -e /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf ] || {
	skip 'kill -9 at random moments' 'no emoji font or extractor here'; finish; exit; }

work=$(mktemp -d)
export TRANSFUSE_STATE=$work/state PATH=$build:$PATH
daemon=0
leave() {
	kill -9 "$daemon" $(jobs -p) 2>/dev/null
	pkill -9 -f "transfuse-worker .*$runtime" 2>/dev/null
	[ -n "${TF_KEEP:-}" ] && echo "# kept $work" || rm -rf "$work"
}
runtime=none
trap leave EXIT

start_daemon() {
	rm -f "$work/ready"; mkfifo "$work/ready"
	setsid transfused --state "$TRANSFUSE_STATE" --slots 2 --threads 1 --map-mib 256 --data-map-mib 256 \
		--ready-fd 3 3>"$work/ready" 2>>"$work/daemon.log" </dev/null >/dev/null &
	daemon=$!
	read -r -t 120 _ <"$work/ready" || { echo "Bail out! no daemon:"; tail -5 "$work/daemon.log"; exit 1; }
	runtime=$(sed -n 's,^ipc://\(.*\)/socket$,\1,p' "$TRANSFUSE_STATE/endpoint" | head -1)
	# workers are found by it: without one, pkill would take those of other daemons
	[ -n "$runtime" ] || { runtime=none; echo "Bail out! no socket in $TRANSFUSE_STATE/endpoint"; exit 1; }
}

# Waits for a job and says how it ended; 0 when done.
must() { "$@" --wait >"$work/out" 2>&1 || { echo "Bail out! $*:"; sed 's/^/# /' "$work/out"; exit 1; }; }

cat >"$work/vae.yaml" <<END
model: {channels: [8, 8], latent_channels: 4, downsample: 4}
train: {steps: 20, batch: 8, warmup: 2}
data: [{name: pixels}]
END
cat >"$work/model.yaml" <<END
model: {layers: 2, dim: 32, heads: 2, ff: 64, patch: 2, precision: f32}
train: {steps: 120, sequence: 128, batch: 2, warmup: 5, lr: 1e-3, ema: 0.9}
save: {every: 10, keep_last: 2}
eval: {every: 0}
data: [{name: pairs}]
END
"$build/tools/emoji" --count 24 --size 32 "$work/pictures"
start_daemon
must transfuse data import pixels "$work/pictures" --size 32
must transfuse tokenizer train words --from-data pixels --pieces 400
must transfuse vae train look "$work/vae.yaml"
must transfuse data import pairs "$work/pictures" --tokenizer words --vae look --size 32
must transfuse train ref "$work/model.yaml"

# The bytes of a trained model's last checkpoint, as one hash.
weights_of() {
	rm -rf "$work/export"
	transfuse model export "$1" -o "$work/export" >/dev/null 2>&1 || return 1
	(cd "$work/export" && find . -path '*step-00000120*' -name '*.safetensors' | sort | xargs cat | sha256sum)
}
reference=$(weights_of ref)

# Submits in the background; the acknowledged id goes to acks/N.
mkdir "$work/acks"
submits=0
submit() {
	submits=$((submits + 1))
	transfuse "$@" --retries 10 --json >"$work/acks/$submits" 2>"$work/acks/$submits.err" &
	clients="$clients $!"
}
acknowledged() { sed -n 's/^ *{\{0,1\} *"id": *\([0-9]*\).*/\1/p' "$work"/acks/[0-9]* | sort -un; }

activity() {
	case $((RANDOM % 5)) in
	0) submit noop --seconds 0.$((RANDOM % 10)) ;;
	1) submit data import "set$i" "$work/pictures" --size 32 --tokenizer words --vae look ;;
	2) submit train "model$i" "$work/model.yaml" ;;
	3) submit generate ref --prompt 'red apple' --steps 5 --sampler ddim ;;
	4) victim=$(acknowledged | shuf -n 1 --random-source=<(yes $RANDOM))
	   [ -z "$victim" ] || { transfuse cancel "$victim" >/dev/null 2>&1 & clients="$clients $!"
				 echo "$victim" >>"$work/cancelled"; } ;;
	esac
}

done_kills=0
for i in $(seq $((3 * kills))); do
	clients=
	activity; activity; activity
	sleep "0.$(printf '%03d' $((RANDOM % 700)))"
	case $((i % 3)) in
	0) kill -9 "$daemon"; wait "$daemon" 2>/dev/null; start_daemon; done_kills=$((done_kills + 1)) ;;
	1) pkill -9 -n -f "transfuse-worker .*$runtime" && done_kills=$((done_kills + 1)) ;;
	2) kill -9 $(echo "$clients" | awk '{ print $1 }') 2>/dev/null && done_kills=$((done_kills + 1)) ;;
	esac
done
echo "# $done_kills processes were killed, $submits jobs submitted"
# Clients that still talk get a minute, one that hangs is a failure.
clients_end() {
	for _ in $(seq 600); do
		left=
		for client in $(jobs -rp); do [ "$client" = "$daemon" ] || left="$left $client"; done
		[ -n "$left" ] || return 0
		sleep 0.1
	done
	ps -o pid,args -p "$(echo $left | tr ' ' ',')"; kill -9 $left; return 1
}
if clients_end >"$work/hanging"; then ok 'every client ends'; else
	not_ok 'every client ends'; sed 's/^/# /' "$work/hanging"; fi

living() { transfuse jobs --json | grep -c '"state"'; }
settle() {
	for _ in $(seq 600); do [ "$(living)" -eq 0 ] && return 0; sleep 1; done
	transfuse jobs; return 1
}
lost() {
	status=0
	for id in $(acknowledged); do transfuse show "$id" >/dev/null || { echo "job $id is lost"; status=1; }; done
	[ "$(acknowledged | wc -l)" -gt 0 ] && return $status
}
failed() {
	! transfuse jobs --all --json | tr '{' '\n' | grep '"state": *"failed"'
}
twice() {
	status=0
	for job in "$TRANSFUSE_STATE"/jobs/*; do
		n=0
		for outcome in "$job"/attempt-*/outcome.pb; do
			[ -e "$outcome" ] && [ "$(od -An -tx1 -N4 "$outcome")" = ' 08 01 10 00' ] && n=$((n + 1))
		done
		[ $n -le 1 ] || { echo "$job completed $n times"; status=1; }
	done
	return $status
}
whole() {
	status=0
	for name in $(transfuse data list | awk 'NR > 1 { print $1 }'); do
		transfuse data verify "$name" || status=1
	done
	return $status
}
resumed() {
	status=0 models=0
	for name in $(transfuse models | awk '$1 ~ /^model/ && $2 == "ready" { print $1 }'); do
		models=$((models + 1))
		[ "$(weights_of "$name")" = "$reference" ] || { echo "$name differs from ref"; status=1; }
	done
	echo "$models trained models compared"
	[ "$models" -gt 0 ] && return $status
}

check 'the queue empties' settle
check 'no acknowledged job is lost' lost
check 'no job failed' failed
check 'no job completed twice' twice
check 'every dataset is whole' whole
check 'resumed training gives the same bytes' resumed
finish
