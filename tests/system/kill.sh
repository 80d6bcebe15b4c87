#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Eight clients submit jobs of all sorts, watch and cancel them, while the daemon, workers and clients are
# killed (kill -9) at random moments, one at a time and together. Afterwards: no acknowledged job is lost, none
# completed twice or is stuck, every dataset is whole or absent, the store is sound, and every resumed training
# gives the bytes of the uninterrupted one.
#
# TF_KILLS: how many processes are killed (default 60); TF_SEED: of what and when, printed.
set -u
. "${TF_SOURCE:?}/tests/tap.sh"
. "$TF_SOURCE/tests/system/daemon.sh"
kills=${TF_KILLS:-60}
seed=${TF_SEED:-$$}
RANDOM=$seed
echo "# $kills kills, TF_SEED=$seed"

need_emoji 'kill -9 at random moments'

leave() {
	kill -9 $daemon $(jobs -p) 2>/dev/null
	pkill -9 -f "transfuse-worker .*$runtime" 2>/dev/null
	[ -n "${TF_KEEP:-}" ] && echo "# kept $work" || rm -rf "$work"
}
runtime=none
trap leave EXIT

begin() {
	start_daemon --slots 2 --map-mib 256 --data-map-mib 256
	runtime=$(sed -n 's,^ipc://\(.*\)/socket$,\1,p' "$TRANSFUSE_STATE/endpoint" | head -1)
	# workers are found by it: without one, pkill would take those of other daemons
	[ -n "$runtime" ] || { runtime=none; echo "Bail out! no socket in $TRANSFUSE_STATE/endpoint"; exit 1; }
}

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
begin
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

# A client: one request after the other until the end. Its running program's pid goes to pids/N, what was
# acknowledged to acks/N-REQUEST.
mkdir "$work/acks" "$work/pids"
request() {
	local number=$1 ack=$2; shift 2
	transfuse "$@" >"$ack" 2>"$work/client-$number.err" </dev/null &
	echo $! >"$work/pids/$number"
	wait $!
}
id_in() { sed -n 's/^ *{\{0,1\} *"id": *\([0-9]*\).*/\1/p' "$@"; }
client() {
	local number=$1 n=0 last='' ack options='--retry crash=10:0 --retry lost=10:0 --json'
	RANDOM=$((seed + number))
	while [ ! -e "$work/stop" ]; do
		n=$((n + 1)) ack=$work/acks/$number-$n
		case $((RANDOM % 15)) in
		0) request "$number" "$ack" data import "set$number-$n" "$work/pictures" --size 32 \
			--tokenizer words --vae look $options ;;
		1) request "$number" "$ack" train "model$number-$n" "$work/model.yaml" $options ;;
		2) request "$number" "$ack" generate ref --prompt 'red apple' --steps 5 --sampler ddim $options ;;
		3) [ -z "$last" ] || request "$number" "$work/cancelled-$number" cancel "$last" ;;
		4|5|6) [ -z "$last" ] || request "$number" "$work/watched-$number" wait "$last" ;;
		7) [ -z "$last" ] || request "$number" "$ack" noop --after-any "$last" $options ;;
		8) request "$number" "$ack" noop --hold --tag held $options ;;
		9) [ -z "$last" ] || request "$number" "$work/released-$number" release "$last" ;;
		10) [ -z "$last" ] || request "$number" "$work/requeued-$number" requeue "$last" ;;
		*) request "$number" "$ack" noop --seconds "0.$((RANDOM % 4))" $options ;;
		esac 2>/dev/null
		[ ! -s "$ack" ] || last=$(id_in "$ack")
		sleep "0.$(printf '%03d' $((RANDOM % 1000)))"
	done
}
acknowledged() { find "$work/acks" -type f -size +0 -exec cat {} + | id_in | sort -un; }

killed_daemons=0 killed_workers=0 killed_clients=0 together=0
kill_worker() {
	local pid
	pid=$(pgrep -f "transfuse-worker .*$runtime" | sed -n "$((1 + RANDOM % 2))p")
	[ -n "$pid" ] && kill -9 "$pid" 2>/dev/null && killed_workers=$((killed_workers + 1))
}
kill_client() {
	local pid
	pid=$(cat "$work/pids/$((1 + RANDOM % 8))" 2>/dev/null)
	[ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = transfuse ] && kill -9 "$pid" 2>/dev/null &&
		killed_clients=$((killed_clients + 1))
}
kill_daemon() { kill -9 "$daemon" && killed_daemons=$((killed_daemons + 1)); wait "$daemon" 2>/dev/null; }
killed() { echo $((killed_daemons + killed_workers + killed_clients)); }

for number in 1 2 3 4 5 6 7 8; do client "$number" & done
while [ "$(killed)" -lt "$kills" ]; do
	sleep "0.$(printf '%03d' $((RANDOM % 500)))"
	before=$(killed) which=$((1 + RANDOM % 7))
	[ $((which & 2)) -eq 0 ] || kill_worker
	[ $((which & 4)) -eq 0 ] || kill_client
	[ $((which & 1)) -eq 0 ] || { kill_daemon; begin; }
	[ $(($(killed) - before)) -lt 2 ] || together=$((together + 1))
done 2>/dev/null
touch "$work/stop"
echo "# killed: daemon $killed_daemons, workers $killed_workers, clients $killed_clients times; $together times together"

settle() {
	for _ in $(seq 600); do
		# whose client was killed before, and what a client was about to submit when told to stop
		transfuse release --tag held >/dev/null 2>&1
		transfuse jobs --json >"$work/living" && ! grep -q '"state"' "$work/living" && return 0
		sleep 1
	done
	transfuse jobs; return 1
}
# A client that waits for a job ends with it; one that talks on two minutes later hangs.
clients_end() {
	local left pid
	for _ in $(seq 1200); do
		left=
		for pid in $(jobs -rp); do [ "$pid" = "$daemon" ] || left="$left $pid"; done
		[ -n "$left" ] || return 0
		sleep 0.1
	done
	return 1
}
lost() {
	status=0
	transfuse jobs --all --limit 10000 --json | grep -o '"id": *[0-9]*' | grep -o '[0-9]*' | sort -un >"$work/known"
	for id in $(acknowledged); do grep -qx "$id" "$work/known" || { echo "job $id is lost"; status=1; }; done
	[ "$(acknowledged | wc -l)" -gt 0 ] && return $status
}
# A job fails by a worker's eleventh death only: ten were to be forgiven.
failed() {
	status=0
	transfuse jobs --all --limit 10000 --state failed >"$work/failed" || return 1
	for job in $(awk '$1 ~ /^[0-9]+$/ { print $1 }' "$work/failed"); do
		transfuse show "$job" >"$work/one" 2>&1 || status=1
		grep -q '(\(crash\|lost\) 11 of 11)' "$work/one" && continue
		status=1
		cat "$work/one"
		transfuse logs "$job" 2>&1 | tail -n 40
		grep "job=$job " "$work/daemon.log" | tail -n 20
	done
	return $status
}
twice() {
	status=0
	for job in "$TRANSFUSE_STATE"/jobs/*; do
		n=0
		for outcome in "$job"/outcome-*.pb; do
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
if clients_end && settle >/dev/null; then ok 'the clients end'; else not_ok 'the clients end'; fi
echo "# $(acknowledged | wc -l) jobs acknowledged"
check 'no acknowledged job is lost' lost
check 'no job failed' failed
check 'no job completed twice' twice
check 'every dataset is whole' whole
check 'resumed training gives the same bytes' resumed
check 'the store is sound' transfused check --state "$TRANSFUSE_STATE"
finish
