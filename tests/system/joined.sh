#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Jobs that draw and write at a time share one warm worker and run in one batch. What comes of each is what comes
# of it alone; one that fails or is cancelled does not touch the others; when worker or daemon are killed, none
# is lost or ends twice.
set -u
. "${TF_SOURCE:?}/tests/tap.sh"
. "$TF_SOURCE/tests/system/daemon.sh"
need_emoji 'jobs that join'
cd "$work" || exit 1

# Nothing here hopes that jobs still run: a held batch takes in and lets go, but no more than a few steps, so that
# none in it can end by itself, however slow the machine or this script is.
export TF_HOLD=$work/held
mkdir "$TF_HOLD"
hold() { echo 20 >"$TF_HOLD/batch-step"; }
go_on() { rm "$TF_HOLD/batch-step"; }
begin() { start_daemon --slots 1 --fast-slots 0 --map-mib 64 --data-map-mib 64 "$@"; }
ids() { sed -n 's/^{"id":\([0-9]*\),.*/\1/p' "$@"; }
field() { transfuse show "$1" --json | grep -o "\"$2\":[^,}]*" | head -1 | cut -d: -f2 | tr -d '" '; }

cat >vae.yaml <<END
model: {channels: [8, 8], latent_channels: 4, downsample: 4}
train: {steps: 20, batch: 8, warmup: 2}
data: [{name: pixels}]
END
cat >model.yaml <<END
model: {layers: 2, dim: 32, heads: 2, ff: 64, patch: 2, precision: f32}
train: {steps: 120, sequence: 192, batch: 2, warmup: 5, lr: 1e-3}
eval: {every: 0}
data: [{name: pairs}]
END
"$build/tools/emoji" --count 24 --size 32 pictures >/dev/null
begin --joined-jobs 1
must transfuse data import pixels pictures --size 32
must transfuse tokenizer train words --from-data pixels --pieces 300
must transfuse vae train look vae.yaml
must transfuse data import pairs pictures --tokenizer words --vae look --size 32
must transfuse train ref model.yaml

# Drawings with and without guidance, of other seeds, steps and samplers, and texts; N is the number of one.
submit() { # N OPTION...
	local n=$1 text='red apple'; shift
	[ $((n % 3)) -eq 0 ] || text='a cat on a mat'
	if [ $((n % 4)) -eq 3 ]; then
		set -- --mode text --temperature 0.$((n % 3 * 4)) --max-tokens $((90 + n)) --count 2 "$@"
	else
		set -- --steps $((300 + 40 * (n % 3))) --guidance $((1 + 2 * (n % 2))) "$@"
		[ $((n % 5)) -ne 2 ] || set -- --sampler ddim "$@"
	fi
	transfuse generate ref --prompt "$text" --seed "$n" --json "$@"
}
submit_all() { # TAG OPTION...: into the file TAG, a job a line
	local tag=$1 n; shift
	for n in 1 2 3 4 5 6 7 8 9 10; do submit "$n" --tag "$tag" "$@"; done | ids >"$tag"
}
submit_all alone
transfuse wait --tag alone >out 2>&1 || { echo 'Bail out! alone:'; sed 's/^/# /' out; exit 1; }
none_joined() { ! grep ' joins job ' daemon.log && [ "$(wc -l <alone)" -eq 10 ]; }
check 'with joined-jobs 1 none joins another' none_joined
kill "$daemon"; wait "$daemon"

# Job number N of a tag has the pictures and texts of the one alone.
as_alone() { # TAG N
	local a=$TRANSFUSE_STATE/jobs/$(sed -n "$2p" alone)/results b=$TRANSFUSE_STATE/jobs/$(sed -n "$2p" "$1")/results
	local picture far
	for picture in "$a"/*.png; do
		[ -e "$picture" ] || continue
		far=$("$build/tests/bench/apart" "$picture" "$b/${picture##*/}" | sed 's/.*"largest":\([0-9]*\).*/\1/')
		[ "${far:-255}" -le 2 ] || { echo "$picture: $far apart"; return 1; }
	done
	[ ! -e "$a/texts.jsonl" ] || cmp "$a/texts.jsonl" "$b/texts.jsonl"
}
all_as_alone() { # TAG [N left out]
	local n
	for n in 1 2 3 4 5 6 7 8 9 10; do [ "$n" = "${2:-}" ] || as_alone "$1" "$n" || return 1; done
}
# Held, then released at once, so that they are there together.
release() { transfuse release --tag "$1" >/dev/null; }
# said PATTERN [LEAST]: waits until so many lines of the daemon's log are like it.
said() {
	for _ in $(seq 6000); do
		[ "$(grep -cE -e "$1" daemon.log)" -lt "${2:-1}" ] || return 0
		sleep 0.01
	done
	echo "not in the log ${2:-1} times: $1"; return 1
}
run() { said " job=($(paste -sd '|' "$1")) state=running " "$2"; } # TAG LEAST

begin
begun=$(date +%s%N)
submit_all joined --hold
hold
release joined
run joined 10
go_on
check 'all are done' transfuse wait --tag joined
lasted=$(($(date +%s%N) - begun))
together() { # TAG LEAST: the most jobs that ran at a time
	local id most=0 n
	for id in $(cat "$1"); do
		n=$(field "$id" jobs_together); n=${n%%.*}
		[ "${n:-0}" -le "$most" ] || most=$n
	done
	echo "$most together"; grep -c ' joins job ' daemon.log
	[ "$most" -ge "$2" ]
}
check 'they ran together' together joined 10
check 'with the pictures and texts of each alone' all_as_alone joined
logs() {
	local id
	for id in $(cat joined); do
		grep -v " job=$id " "$TRANSFUSE_STATE/jobs/$id/log" && return 1
		grep -q ' done$' "$TRANSFUSE_STATE/jobs/$id/log" || return 1
	done
}
check 'each has a log of its own' logs
# What they had of the processor, of all attempts together, is no more than there was.
paid() {
	transfuse usage --json >usage.json; cat usage.json
	echo "$lasted ns" "$(cat before)"
	awk -v before="$(cat before)" -v ns="$lasted" '{ match($0, /"cpu_hours":[0-9.e-]*/)
		hours = substr($0, RSTART + 12, RLENGTH - 12) - before
		exit !(hours > 0 && hours * 3600e9 <= 1.02 * ns) }' usage.json
}
kill "$daemon"; wait "$daemon"
begin --joined-jobs 3
transfuse usage --json | grep -o '"cpu_hours":[0-9.e-]*' | cut -d: -f2 >before
begun=$(date +%s%N)
submit_all again --hold
hold
release again
run again 3
go_on
transfuse wait --tag again >/dev/null
lasted=$(($(date +%s%N) - begun))
check 'the process is paid for once' paid
bounded() { together again 3 && ! together again 4; }
check 'no more run together than the option says' bounded
kill "$daemon"; wait "$daemon"
begin

# One is cancelled and one cannot be done while the others go on.
submit_all mixed --hold
victim=$(sed -n 5p mixed)
long=$(yes 'a long prompt that does not fit' | head -40 | tr '\n' ' ')
bad=$(transfuse generate ref --prompt "$long" --tag mixed --hold --json | ids)
hold
release mixed
run mixed 10
transfuse cancel "$victim" >/dev/null
said " job=$victim state=cancelled"
go_on
transfuse wait --tag mixed >/dev/null 2>&1
apart_ends() {
	local id
	echo "$(field "$victim" state) $(field "$bad" state)"
	for id in $(cat mixed); do [ "$(field "$id" attempt)" -eq 1 ] || { echo "$id was repeated"; return 1; }; done
	[ "$(field "$victim" state)" = cancelled ] && [ "$(field "$bad" state)" = failed ] && all_as_alone mixed 5
}
check 'one that is cancelled and one that fails touch no other' apart_ends

# Ten run in one process, which is killed.
worker() { sed -n 's/.* joins job .*pid=\([0-9]*\)$/\1/p' daemon.log | tail -1; }
submit_all killed --hold --retry crash=5:0 --retry lost=5:0
hold
release killed
run killed 10
kill -9 "$(worker)"
go_on
check 'when the worker is killed they run again' transfuse wait --tag killed
again() {
	local id retried=0
	for id in $(cat killed); do [ "$(field "$id" attempt)" -lt 2 ] || retried=$((retried + 1)); done
	echo "$retried had another attempt"
	[ "$retried" -eq 10 ] && all_as_alone killed
}
check 'and are as alone' again

submit_all adopted --hold
hold
release adopted
run adopted 10
kill -9 "$daemon"; wait "$daemon" 2>/dev/null
begin
further=$(transfuse generate ref --prompt 'it comes later' --steps 20 --tag adopted --json | ids)
said "job=$further .* joins job "
go_on
check 'a new daemon adopts them all' transfuse wait --tag adopted
check 'and a further job joins them' grep -q "job=$further .* joins job " daemon.log
once() {
	local id alive
	for id in $(cat adopted); do [ "$(field "$id" attempt)" -eq 1 ] || { echo "$id was repeated"; return 1; }; done
	# only of these: an idle worker that the daemon before had sent away may still have been there, too
	alive=$(grep -cE " job=($(paste -sd '|' adopted)) .*attempt=1 is alive, pid" daemon.log)
	[ "$alive" -eq 10 ] || { echo "$alive were found alive"; return 1; }
	all_as_alone adopted
}
check 'and none is repeated' once
kill "$daemon"; wait "$daemon"

# A worker that does not hear of what it is given: that job waits again, and has not failed.
TF_FAULT=join:1 begin --hello-seconds 3
submit_all lost --hold
hold
release lost
said 'did not take it in'
go_on
check 'a job that did not come to the worker runs later' transfuse wait --tag lost
put_back() {
	local id n=0
	for id in $(cat lost); do
		[ "$(field "$id" attempt)" -ne 2 ] || n=$((n + 1))
		transfuse show "$id" --json | grep -q '"failures":{}' || { echo "$id failed"; return 1; }
	done
	echo "$n put back"
	[ "$n" -ge 1 ] && [ "$n" -eq "$(grep -c 'did not take it in' daemon.log)" ] && all_as_alone lost
}
check 'and that is no failure of it' put_back
finish
