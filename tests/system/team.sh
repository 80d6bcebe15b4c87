#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Follows doc/team.md word for word: two users with homes of their own, a daemon with the system's configuration. Of
# the document only the line with the folder and the port is changed. A command must succeed and its answer contain what
# follows its '#', or be refused, with exit status 4 and these words.
set -u
. "${TF_SOURCE:?}/tests/tap.sh"
build=$(cd "${TF_BUILD:?}" && pwd)
source=$(cd "$TF_SOURCE" && pwd)
work=$(mktemp -d)
export PATH=$build:$PATH
unset TRANSFUSE_STATE TRANSFUSE_ENDPOINT XDG_CONFIG_HOME
mkdir "$work/ann" "$work/bob"
exports_of_ann='' exports_of_bob=''
leave() {
	[ ! -e "$work/ann/box/lock" ] || kill "$(cat "$work/ann/box/lock")" 2>/dev/null
	sleep 0.2
	rm -rf "$work"
}
trap leave EXIT

# A port nobody listens on; below those that the system gives to clients.
free_port() {
	local port
	while port=$((20000 + RANDOM % 10000)); do
		(exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
	done
	echo "$port"
}
first="export TEAM=$work/team PORT=$(free_port)"

# run USER COMMAND: in the user's home and with what they exported.
run() {
	local exports=exports_of_$1 folder=$work/$1
	[ "$1" = bob ] || folder=$source
	(cd "$folder" && HOME=$work/$1 bash -c "${!exports}
$2" 2>&1) </dev/null
}

# follow USER LINE: one command of the document with what it says of its answer.
follow() {
	local command=${2%%[[:space:]]#[[:space:]]*} words='' wanted=0 answer status
	[ "$command" = "$2" ] || words=${2##*[[:space:]]#[[:space:]]}
	[ "${words#refused: }" = "$words" ] || wanted=4 words=${words#refused: }
	case $command in
	export*) eval "exports_of_$1+=\$command\$'\\n'"; return 0 ;;
	esac
	answer=$(run "$1" "$command") && status=0 || status=$?
	printf '%s> %s\n%s\n' "$1" "$command" "$answer" >>"$work/session"
	[ $status -eq $wanted ] || { echo "exit status $status, expected $wanted"; return 1; }
	[ -z "$words" ] || tr -s ' ' <<<"$answer" | grep -qF -- "$(tr -s ' ' <<<"$words")" || { echo "no '$words'"; return 1; }
}

# Every block of the document, line by line; a here-document is one line of it.
walk() {
	local user='' line more
	while IFS= read -r line; do
		case $line in
		'```sh '*) user=${line#'```sh '}; continue ;;
		'```') user=''; continue ;;
		esac
		[ -n "$user" ] || continue
		case $line in
		*'<<END'*) while IFS= read -r more; do line+=$'\n'$more; [ "$more" != END ] || break; done ;;
		esac
		if [ "$user" = both ]; then
			exports_of_ann=$first$'\n' exports_of_bob=$first$'\n'
		else
			commands=$((commands + 1))
			follow "$user" "$line" || { tail -12 "$work/session"; return 1; }
		fi
	done <"$source/doc/team.md"
}
commands=0
walk >"$work/out"
status=$?
sed 's/^/# /' "$work/out"
if [ $status -eq 0 ]; then ok 'the document is right'; else not_ok 'the document is right'; fi
check 'all of it was followed' test "$commands" -ge 35
gone() { for _ in $(seq 100); do run ann 'transfuse ping' >/dev/null || return 0; sleep 0.1; done; return 1; }
check 'nothing runs on' gone
finish
