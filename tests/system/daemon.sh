# SPDX-License-Identifier: Apache-2.0
# A daemon of a test's own, for bash: source this after tests/tap.sh. $work is a folder that goes at the end, and
# TRANSFUSE_STATE, HOME and PATH are the test's.
build=$(cd "${TF_BUILD:?}" && pwd)
work=$(mktemp -d)
export TRANSFUSE_STATE=$work/state PATH=$build:$PATH HOME=$work XDG_CONFIG_HOME=
unset TRANSFUSE_ENDPOINT
daemon=
# start_daemon OPTION...: until it is ready; its process is $daemon, its log is added to $work/daemon.log.
start_daemon() {
	rm -f "$work/ready"; mkfifo "$work/ready"
	setsid transfused --state "$TRANSFUSE_STATE" --threads 1 "$@" \
		--ready-fd 3 3>"$work/ready" 2>>"$work/daemon.log" </dev/null >/dev/null &
	daemon=$!
	read -r -t 120 _ <"$work/ready" || { echo "Bail out! no daemon:"; tail -5 "$work/daemon.log"; exit 1; }
}
# With its jobs and workers.
stop_daemon() {
	[ -n "$daemon" ] || return 0
	transfuse drain --stop >/dev/null 2>&1
	kill "$daemon" 2>/dev/null
	wait "$daemon" 2>/dev/null
	daemon=
}
trap 'stop_daemon; rm -rf "$work"' EXIT
# Waits for a job, and everything ends here when it fails.
must() { "$@" --wait >"$work/out" 2>&1 || { echo "Bail out! $*:"; sed 's/^/# /' "$work/out"; exit 1; }; }
# need_emoji WHAT: a test of that is skipped where pictures with names cannot be made.
need_emoji() {
	[ -x "$build/tools/emoji" ] && [ -e /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf ] ||
		{ skip "$1" 'no emoji font or extractor here'; finish; exit; }
}
