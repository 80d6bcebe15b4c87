#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# transfuse against a daemon of its own: exit statuses, JSON, a job the whole way, an upload, and a
# daemon that goes and comes back while a job is followed.
. "${TF_SOURCE:?}/tests/tap.sh"
: "${TF_BUILD:?}"
folder=$(mktemp -d "${TMPDIR:-/tmp}/tf-client.XXXXXX") || exit 1
daemon=
stop_daemon() { [ -z "$daemon" ] || { kill "$daemon" && wait "$daemon"; } 2>/dev/null; daemon=; }
trap 'stop_daemon; rm -rf "$folder"' EXIT
unset TRANSFUSE_ENDPOINT TRANSFUSE_STATE
HOME=$folder/home XDG_CONFIG_HOME=
export HOME XDG_CONFIG_HOME
cli=$TF_BUILD/transfuse

# Runs in this shell, unlike check: it starts and stops the daemon.
run_here() { if "$2" >"$folder/here" 2>&1; then ok "$1"; else
	not_ok "$1"; sed 's/^/# /' "$folder/here"; fi; }

start_daemon() {
	rm -f "$folder/state/endpoint"
	"$TF_BUILD/transfused" --state "$folder/state" --map-mib 16 --listen 'tcp://127.0.0.1:*' >>"$folder/log" 2>&1 &
	daemon=$!
	for i in $(seq 600); do
		"$cli" ping >/dev/null 2>&1 && return 0
		sleep 0.1
	done
	cat "$folder/log"; return 1
}

check 'no verb is a usage error' status 2 "$cli"
check 'help is no error' status 0 "$cli" --help
check 'every verb has help' sh -c "\"$cli\" completion | grep -c words= >/dev/null"
check 'unknown verb' status 2 "$cli" trian
check 'unknown option' status 2 "$cli" noop --secnds 1
check 'missing operand' status 2 "$cli" train x
check 'no daemon known' status 3 "$cli" ping
check 'no key of the daemon' status 2 "$cli" ping --endpoint "ipc://$folder/none"
bounds() {
	status 2 "$cli" wait --any $(seq 251) && says '251 jobs, at most 250' || return 1
	truncate -s 65M "$folder/large"
	"$cli" submit --batch "$folder/large" >"$folder/said" 2>&1 && return 1
	out=$(cat "$folder/said")
	rm "$folder/large"
	says '67108864'
}
check 'what is too much for one command' bounds
presets() {
	status 0 "$cli" check "$TF_SOURCE"/etc/tiny.yaml "$TF_SOURCE"/etc/0.16b.yaml "$TF_SOURCE"/etc/0.37b.yaml \
		"$TF_SOURCE"/etc/0.76b.yaml "$TF_SOURCE"/etc/1.4b.yaml "$TF_SOURCE"/etc/7b.yaml \
		"$TF_SOURCE"/etc/vae-tiny.yaml "$TF_SOURCE"/etc/vae-256.yaml || return 1
	[ "$(printf '%s\n' "$out" | grep -c ': valid (')" -eq 8 ] || { echo "$out"; return 1; }
}
check 'every preset is valid' presets
wrong_among_right() {
	mkdir -p "$folder/home"
	echo 'model: {layers: x}' >"$folder/home/wrong.yaml"
	status 2 "$cli" check "$folder/home/wrong.yaml" "$TF_SOURCE/etc/tiny.yaml" || return 1
	says "layers: found 'x'" && says 'tiny.yaml: valid (train'
}
check 'a wrong file among others' wrong_among_right
TRANSFUSE_STATE=$folder/state
export TRANSFUSE_STATE
check 'no daemon in the state folder' status 3 "$cli" jobs
check 'doctor without a daemon' status 3 "$cli" doctor
errors_for_programs() {
	answers 3 '^{"error":"no daemon has run with .*","code":"TF_ENODAEMON","status":3}$' "$cli" jobs --json || return 1
	answers 2 "^{\"error\":\"noop has no option '--secnds'.*\",\"code\":\"TF_EUSAGE\",\"status\":2}\$" "$cli" noop --secnds 1 --json || return 1
	answers 2 '^{"error":.*trian.*"status":2}$' "$cli" trian --json || return 1
	answers 2 '^{"error":.*"code":"TF_E[A-Z]*","status":2}$' "$cli" check --json "$(printf '/none\377')"
}
check 'errors as JSON' errors_for_programs
# As nobody, where root would see everything.
as_other() {
	if [ "$(id -u)" = 0 ]; then setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; else "$@"; fi
}
anothers_state() {
	mkdir -p "$folder/closed/inside" && chmod 711 "$folder" && chmod 0 "$folder/closed" || return 1
	answers 4 "closed/inside .* is another user's" as_other env HOME=/ TRANSFUSE_STATE="$folder/closed/inside" "$cli" jobs
	rc=$?
	chmod 700 "$folder/closed" "$folder"
	return $rc
}
check "another user's daemon" anothers_state
check 'the completion of bash is fresh' sh -c \
	"\"$cli\" completion | cmp - \"$TF_SOURCE/etc/completion/transfuse.bash\""

run_here 'a daemon starts' start_daemon
check 'doctor' status 0 "$cli" doctor
check 'no daemon at an endpoint' status 3 "$cli" ping --endpoint "ipc://$folder/none"
check 'no such job' status 4 "$cli" show 99
check 'no such dataset' status 4 "$cli" data show nothing
check 'a wrong name is told here' status 2 "$cli" data import 'a/b' "$folder"
check 'a job goes the whole way' status 0 "$cli" noop --seconds 0.2 --name first -w
json() {
	status 0 "$cli" noop -w --json || return 1
	for key in id kind name user state submitted started ended progress reason; do
		says "\"$key\":" || return 1
	done
	says '"state":"done"'
}
check 'JSON of a job' json
filtered() {
	status 0 "$cli" jobs --state done --name 'fir*' --kind noop --user "$(id -un)" --json || return 1
	says '^\[{"id":1,' || return 1
	status 0 "$cli" jobs --state failed --state done --user nobody-here || return 1
	says 'no such jobs' || return 1
	status 0 "$cli" jobs --all --counts --json || return 1
	says ':{"done":2}' || return 1
	status 0 "$cli" jobs --all --counts || return 1
	says 'done  *2' || return 1
	status 2 "$cli" jobs --state sleeping || return 1
	status 2 "$cli" jobs --kind poem
}
check 'jobs of a state, name, kind and user, and their counts' filtered
slots() {
	status 0 "$cli" slots || return 1
	says 'cpu0 .* free' || return 1
	status 0 "$cli" slots drain cpu0 --reason 'the fan' || return 1
	status 0 "$cli" slots || return 1
	says 'drained .*: the fan' || return 1
	status 1 "$cli" doctor || return 1
	says 'BAD *cpu0 *drained: the fan' || return 1
	status 0 "$cli" slots --json || return 1
	says '"drained":true,"reason":"the fan"' || return 1
	status 0 "$cli" slots resume cpu0 || return 1
	status 0 "$cli" slots --json || return 1
	says '"drained":false,"reason":null' || return 1
	status 4 "$cli" slots resume gpu9 || return 1
	status 4 "$cli" slots forget cpu0 || return 1
	status 2 "$cli" slots drain
}
check 'slots are shown, drained and resumed' slots
top() {
	status 0 "$cli" top || return 1 # no terminal: once
	says '^cpu0 .* free' && says '^transfused .* you are ' || return 1
	status 0 "$cli" top --once --limit 0 || return 1
	status 0 "$cli" top --json || return 1
	says '"counts":{"queued":"0"' && says '"slots":\[{"name":"cpu0"' || return 1
	status 2 "$cli" top --every 0 || return 1
	status 2 "$cli" top --limit 101
}
check 'top without a terminal' top
check 'its log' status 0 "$cli" logs 1
cancel() {
	status 0 "$cli" noop --seconds 60 || return 1
	status 0 "$cli" cancel 3 || return 1
	status 5 "$cli" wait 3
}
check 'a cancelled job' cancel
# Held jobs and a chain of them, by their tag; one of them is put back.
hold() {
	id=$("$cli" noop --hold --tag blue --json | sed 's/.*"id":\([0-9]*\).*/\1/')
	status 0 "$cli" noop --after "$id" --tag blue --tag deep --json || return 1
	says '"state":"waiting"' && says "\"after\":\[$id\]" && says '"tags":\["blue","deep"\]' || return 1
	status 0 "$cli" hold "$((id + 1))" && says 'is held' || return 1
	status 0 "$cli" jobs --tag blue --state held --counts && says ' 2$' || return 1
	status 0 "$cli" jobs --tag green && says 'no such jobs' || return 1
	status 4 "$cli" hold --tag green || return 1
	status 4 "$cli" hold 1 "$id" && says "job $id is held" && says 'job 1' && says '1 of 2 jobs are not changed' || return 1
	status 4 "$cli" hold 1 "$id" --json && says '"id":1,"refused":"' || return 1
	status 2 "$cli" hold || return 1
	status 2 "$cli" hold 1 --tag blue || return 1
	status 0 "$cli" cancel --tag blue || return 1
	status 0 "$cli" requeue --tag blue || return 1
	status 0 "$cli" wait "$id" "$((id + 1))" || return 1
	status 4 "$cli" requeue "$id" && says 'only a failed or cancelled' || return 1
	status 0 "$cli" noop --after-any 3 --after-failed 3 -w && return 1
	status 0 "$cli" noop --after-any 3 -w
}
check 'holding, tags, putting back' hold
# For an end, a state, the first of several, for so long.
waiting() {
	held=$("$cli" noop --hold --tag slow --json | sed 's/.*"id":\([0-9]*\).*/\1/')
	status 6 "$cli" wait "$held" --timeout 0 && says 'time is up for 1 of 1' || return 1
	status 0 "$cli" wait "$held" --state held --state running --timeout 1m && says 'is held' || return 1
	status 0 "$cli" noop --tag slow -w || return 1
	status 0 "$cli" wait --tag slow --any --timeout 1m && says "job $((held + 1)) (noop): done" || return 1
	status 6 "$cli" wait --tag slow --timeout 0 && says 'time is up for 1 of 2' || return 1
	status 6 "$cli" wait "$held" 999999 --any --timeout 0 && return 1
	status 6 "$cli" wait "$held" --any --timeout 0 --json && says '^\[\]' || return 1
	status 0 "$cli" wait "$((held + 1))" --state running || return 1
	status 1 "$cli" wait "$((held + 1))" --state held || return 1
	status 0 "$cli" cancel "$held" && status 5 "$cli" wait --tag slow || return 1
	status 2 "$cli" wait && status 2 "$cli" wait 1 --timeout soon || return 1
	status 4 "$cli" wait --tag nobody-has-it && status 4 "$cli" wait 999999 || return 1
	for i in $(seq 250); do echo '{"noop": {}, "hold": true, "tag": ["many"]}'; done >"$folder/many"
	status 0 "$cli" submit --batch "$folder/many" || return 1
	last=$("$cli" jobs --tag many --limit 1 --json | sed 's/.*"id":\([0-9]*\).*/\1/')
	status 6 "$cli" wait --tag many --any --timeout 0 && says 'for 250 of 250' || return 1
	status 0 "$cli" release "$last" || return 1
	status 0 "$cli" wait --tag many --any --timeout 1m && says "job $last (noop): done" || return 1
	status 0 "$cli" cancel --tag many
}
check 'waiting for states, tags, the first, for so long' waiting
check 'fetch of everything' status 0 "$cli" fetch 1 --all -o "$folder/out"
check 'a fetched file is there' test -s "$folder/out/log"
nothing_half() { [ -z "$(find "$folder/out" -name '*.part')" ]; }
check 'nothing is left half' nothing_half

mkdir -p "$folder/pictures"
head -c 3000000 /dev/urandom >"$folder/pictures/a.png"
echo 'a caption' >"$folder/pictures/a.txt"
check 'dry run of an import' status 0 "$cli" data import pics "$folder/pictures" --dry-run
upload() {
	status 0 "$cli" data import pics "$folder/pictures" || return 1
	says 'images+captions, sent'
}
check 'an upload' upload
taken() {
	echo 'a text of one line' >"$folder/prose.txt"
	status 0 "$cli" data import prose "$folder/prose.txt" -w || return 1
	status 4 "$cli" data import prose "$folder/prose.txt" || return 1
	says "'prose' exists" || return 1
	! says 'sent' >/dev/null
}
check 'a taken name is told before anything is sent' taken

# The key of somebody else.
stranger() {
	status 0 "$cli" key --key "$folder/home/other.key" || return 1
	status 4 "$cli" ping --key "$folder/home/other.key" || return 1
	says 'does not know this key' || return 1
	chmod 644 "$folder/home/other.key"
	status 4 "$cli" ping --key "$folder/home/other.key" || return 1
	says 'others can read'
}
check 'a key that the daemon does not know' stranger

# Somebody else of this machine, with a HOME of their own.
newcomer() { HOME=$folder/bob TRANSFUSE_STATE= "$@"; }
enrolled() {
	status 3 newcomer "$cli" login || return 1
	says 'transfuse user add' || return 1
	key=$(newcomer "$cli" key) || return 1
	status 0 "$cli" user add bob member "$key" || return 1
	says 'transfuse login ipc://' || return 1
	says '  # on this machine' || return 1
	line=$(printf '%s\n' "$out" | sed -n "s/^ *transfuse login \(tcp:\)/\1/p")
	status 0 newcomer "$cli" login "${line%% *}" "$(printf '%s' "${line#* }" | tr -d "'")" || return 1
	says 'you are bob (member)' || return 1
	status 0 newcomer "$cli" noop --name bobs || return 1
	status 0 "$cli" user list --json || return 1
	says '"name":"bob"' || return 1
	status 4 newcomer "$cli" user list || return 1
	status 0 "$cli" ping --as bob || return 1
	status 4 newcomer "$cli" ping --as root || return 1
	status 0 "$cli" user role bob reader || return 1
	status 4 newcomer "$cli" noop || return 1
	status 0 "$cli" user revoke bob || return 1
	status 4 newcomer "$cli" login || return 1
	says 'does not know this key'
}
check 'a newcomer is enrolled, and goes' enrolled
ls_mode() { stat -c %a "$folder/bob/.config/transfused/client.key"; }
check 'their key is for them alone' test "$(ls_mode)" = 600

comes_back() {
	"$cli" noop --seconds 3 --name survivor -w >"$folder/followed" 2>&1 &
	follower=$!
	for i in $(seq 600); do
		grep -q ' running\| waiting' "$folder/followed" && break # as it is seen: warm workers are quick
		sleep 0.1
	done
	stop_daemon
	start_daemon || return 1
	wait "$follower" || { cat "$folder/followed"; return 1; }
	grep -q 'survivor): done' "$folder/followed"
}
run_here 'a follower outlives the daemon' comes_back

# From before the start of a job, through a daemon that goes and an attempt that crashes.
lines_to_daemon() { grep -c "$(sed 's/^ipc:..//; s/ .*//; q' "$folder/state/endpoint")" /proc/net/unix; }
log_comes_back() {
	echo '{"noop": {"fail": "crash"}, "hold": true, "tag": ["crash"], "retry": [{"failure": "failure_crash", "times": 1, "delay_s": 0}]}' \
		>"$folder/crash.jsonl"
	"$cli" submit --batch "$folder/crash.jsonl" || return 1
	crash=$("$cli" jobs --tag crash --json | sed 's/.*"id":\([0-9]*\).*/\1/')
	lines_to_daemon >"$folder/lines"
	sleep 0.1
	until lines_to_daemon | cmp -s - "$folder/lines"; do # those who asked before have left
		lines_to_daemon >"$folder/lines"
		sleep 0.1
	done
	"$cli" logs -f "$crash" >"$folder/followed" 2>&1 &
	follower=$!
	for i in $(seq 100); do
		lines_to_daemon | cmp -s - "$folder/lines" || break
		sleep 0.1
	done
	stop_daemon
	start_daemon && "$cli" release "$crash" || return 1
	wait "$follower" || { cat "$folder/followed"; return 1; }
	"$cli" logs "$crash" | cmp - "$folder/followed" || return 1
	[ "$(grep -c 'attempt=' "$folder/followed")" -eq 2 ] || { cat "$folder/followed"; return 1; }
	status 1 "$cli" wait "$crash" && says 'crash 2 of 2' || return 1
	status 0 "$cli" show "$crash" --json && says '"failures":{"crash":2}'
}
run_here 'a followed log outlives daemon and attempt' log_comes_back

check 'the daemon drains' status 0 "$cli" drain
check 'and goes on' status 0 "$cli" drain --resume
finish
