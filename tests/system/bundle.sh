#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The scripts of the GPU bundle, with programs that only pretend: what run-tests counts, what run-bench prints.
# And that the worker starts without the libraries that a GPU needs, or few jobs do.
. "$TF_SOURCE/tests/tap.sh"
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
mkdir "$here/bin"
sed 's/@TESTS@/good bad crash silent/' "$TF_SOURCE/tests/gpu/run-tests" >"$here/run-tests"
cp "$TF_SOURCE/tests/gpu/run-bench" "$here/run-bench"
program() { { echo '#!/bin/sh'; cat; } >"$here/bin/$1"; chmod 755 "$here/bin/$1"; }
program good <<'END'
printf '1..3\nok 1 - a\nnot ok 2 # SKIP b\nok 3 - c # SKIP no GPU\n'
[ "$TF_DEVICE" = cuda ]
END
program bad <<'END'
printf 'ok 1 - a\nnot ok 2 - b\n# why b\nok 3 - c\n'
exit 1
END
program crash <<'END'
printf 'ok 1 - a\n'
exit 139
END
program silent <<'END'
exit 0
END
program bench_gpu <<'END'
[ "$5" = 1536 ] || { echo "bench_gpu: no \"GPU\"" >&2; exit 1; }
echo "{\"what\": \"$1\", \"ms\": 1}"
END
echo 'import sys; print("{\"what\": \"%s\", \"ms\": 2}" % sys.argv[1])' >"$here/peer.py"

counts() { sh "$here/run-tests" "$@" | tail -n 1; }
equals() { [ "$1" = "$2" ] || { echo "got '$1', expected '$2'"; return 1; }; }
check 'points are counted, skipped ones apart' equals "$(counts good)" '1 passed, 0 failed, 2 skipped'
check 'all programs run, a crash and silence count as failures' \
	equals "$(counts)" '4 passed, 3 failed, 2 skipped'
check 'a failure is shown' sh -c "sh '$here/run-tests' bad | grep -q '^not ok 2 - b'"
check 'a failure is the exit status' sh -c "! sh '$here/run-tests' bad >/dev/null"
check 'success is the exit status' sh -c "sh '$here/run-tests' good >/dev/null"
if command -v python3 >/dev/null; then
	check 'the peer runs beside each row' equals "$(sh "$here/run-bench" --only diffuse --peer "$here/peer.py")" \
		'{"program": "transfused", "what": "diffuse", "ms": 1}
{"program": "peer.py", "what": "diffuse", "ms": 2}'
else
	skip 'the peer runs beside each row' 'no python3'
fi
check 'a row that fails says why' sh -c "sh '$here/run-bench' --only train | grep -q '\"error\": \"bench_gpu: no GPU\"'"
check 'and is the exit status' sh -c "! sh '$here/run-bench' --only train >/dev/null"
check 'the worker starts without the libraries of a GPU' \
	sh -c "ldd '$TF_BUILD/transfuse-worker' >'$here/needed' && ! grep -E 'libcu(da|dart|blas|dnn)' '$here/needed'"
check 'and without those that few jobs need' \
	sh -c "! grep -E 'lib(dnnl|archive|xml2)' '$here/needed'"
check 'another option is refused' sh -c "! sh '$here/run-bench' --only more 2>/dev/null"
finish
