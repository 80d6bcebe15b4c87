#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Sweeps: what a file may say, what is told of a wrong one, and one the whole way with real workers.
. "${TF_SOURCE:?}/tests/tap.sh"
: "${TF_BUILD:?}"
folder=$(mktemp -d "${TMPDIR:-/tmp}/tf-sweep.XXXXXX") || exit 1
daemon=
trap '[ -z "$daemon" ] || { kill "$daemon"; wait "$daemon"; }; rm -rf "$folder"' EXIT
unset TRANSFUSE_ENDPOINT
TRANSFUSE_STATE=$folder/state HOME=$folder/home XDG_CONFIG_HOME=
export TRANSFUSE_STATE HOME XDG_CONFIG_HOME
cli=$TF_BUILD/transfuse

cat >"$folder/base.yaml" <<END
model: {layers: 1, dim: 16, heads: 2, ff: 32, precision: f32}
train: {steps: 4, sequence: 32, batch: 1, warmup: 1, lr: 1e-3}
eval: {every: 2, batches: 1}
save: {every: 2, keep_last: 9}
data: [{name: lines}]
END
cat >"$folder/sweep.yaml" <<END
name: rates
base: base.yaml
at_once: 1
set:
  train.warmup: 2
grid:
  train.lr: [1e-3, 3e-4]
  model.layers: [1, 2]
eval:
  task: perplexity
  data: lines
  split: train
  limit: 2
END

# wrong SED-SCRIPT TEXT: the file so changed is refused, saying the text.
wrong() {
	sed "$1" "$folder/sweep.yaml" >"$folder/wrong.yaml"
	status 2 "$cli" sweep "$folder/wrong.yaml" && says "wrong.yaml$2"
}
check 'a bad value' wrong 's/1e-3/abc/' ":7: rates-1 .*train.lr: found 'abc', expected a number from 0 to 10"
check 'an unknown setting' wrong 's/layers:/layerz:/' ':8: .*layerz: no such setting; did you mean model.layers'
check 'a value for all points' wrong 's/warmup: 2/warmup: -1/' ":5: .*train.warmup: found '-1'"
check 'an unknown field' wrong 's/^grid/gird/' ':6: gird: no such setting; did you mean grid'
check 'no list of values' wrong 's/\[1e-3, 3e-4\]/1e-3/' ':7: grid.train.lr: expected a list of values'
check 'an empty list' wrong 's/\[1e-3, 3e-4\]/[]/' ':7: grid.train.lr: expected a list of values'
check 'too many at once' wrong 's/at_once: 1/at_once: 999/' ":3: at_once: found '999', expected a whole number"
check 'no base' wrong 's/base: .*/base: none.yaml/' ': base: .*none.yaml: No such file'
check 'a name that is none' wrong 's/name: .*/name: a b/' ": 'a b' is no name of a sweep"
check 'an unknown task' wrong 's/task: .*/task: love/' ":9: eval: .*task is 'love'"
check 'a wrong value of an evaluation' wrong 's/limit: 2/limit: x/' ":9: eval: field 'limit'.*found \"x\", expected a whole number"
check 'an unknown field of an evaluation' wrong 's/limit: 2/limits: 2/' ":9: eval: EvalSpec has no field 'limits'"
check 'too many checkpoints' wrong 's/train.warmup: 2/train.steps: 1G\n  save.keep_every: 2/; s/limit: 2/checkpoint: every/' ': 4[0-9]* jobs or more, at most 1000 make a sweep'
check 'too many jobs' wrong 's/model.layers: .*/train.seed: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n  train.steps: [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26]\n  train.lambda: [1, 2]/' \
	': 920 points or more with 1 evaluations each are over 1000 jobs'

mkfifo "$folder/ready"
"$TF_BUILD/transfused" --state "$folder/state" --slots 2 --threads 1 --map-mib 16 --data-map-mib 16 \
	--ready-fd 3 3>"$folder/ready" 2>"$folder/log" &
daemon=$!
read -r _ <"$folder/ready" || { echo 'Bail out! no daemon'; exit 1; }
for i in $(seq 200); do echo "the $i. line says that $((i * 7919 % 1000)) comes after $((i * 31 % 100))"; done >"$folder/lines.txt"
check 'a tokenizer' status 0 "$cli" tokenizer train words --from "$folder/lines.txt" --pieces 300 -w
refused() { status 4 "$cli" sweep "$folder/sweep.yaml" --dry-run && says "sweep.yaml: job 1 of 8: .*'lines'"; }
check 'what the daemon refuses' refused
check 'a dataset' status 0 "$cli" data import lines "$folder/lines.txt" --tokenizer words -w

dry() {
	status 0 "$cli" sweep "$folder/sweep.yaml" --dry-run || return 1
	says 'job  *kind  *name  *train.lr  *model.layers' && says 'train  *rates-3  *3e-4  *1' || return 1
	says 'eval  *rates-4-perplexity  *3e-4  *2' && says 'these 8 jobs; nothing was submitted' || return 1
	status 0 "$cli" jobs --tag rates --all && says 'no such jobs'
}
check 'a dry run shows the jobs' dry
listed() {
	sed '/^  train.lr/d; /^  model.layers/d; s/^grid:/list: [{train.lr: 5e-4, train.seed: 7}, {model.layers: 3}]/' \
		"$folder/sweep.yaml" >"$folder/list.yaml"
	status 0 "$cli" sweep "$folder/list.yaml" --dry-run --json || return 1
	says '"name":"rates-2","kind":"train","settings":{"model.layers":"3"}' || return 1
	says '"settings":{"train.lr":"5e-4","train.seed":"7"},"after_member":0'
}
check 'points one by one' listed
# One point, of whose checkpoints those are measured that stay: multiples of 4, and the newest three.
each() {
	cat >"$folder/each.yaml" <<END
name: each
base: base.yaml
set: {train.steps: 13, save.keep_every: 4, save.keep_last: 3}
eval: [{task: perplexity, data: lines, split: train, limit: 1, checkpoint: every}, {task: loss, data: lines, split: train, limit: 1}]
END
	status 0 "$cli" sweep "$folder/each.yaml" -w || return 1
	says '^7 jobs are submitted' && says 'each-1-perplexity-13): done' || return 1
	status 0 "$cli" compare --tag each --kind eval --csv || return 1
	for step in 4 8 10 12 13; do says ",eval,each-1:$step,done," || return 1; done
	says ',eval,each-1,done,'
}
check 'every checkpoint' each
# One at a time, although there is room for two.
whole() {
	status 0 "$cli" sweep "$folder/sweep.yaml" --tag more --set train.seed=3 --json || return 1
	says '"at_once":1,"dry_run":false' || return 1
	status 0 "$cli" jobs --tag rates --tag more --all --json && says '"group":"rates"' || return 1
	status 0 "$cli" wait --tag rates --timeout 5m || return 1
	status 0 "$cli" jobs --tag rates --all --counts && says 'done  *8' || return 1
	status 0 "$cli" jobs --name 'rates-2-perplexity' --all --json || return 1
	says '"result":{.*perplexity' || return 1
	says '"timing":{"queue_ms":[0-9]*,"load_ms":[0-9.]*,"measure_ms":[0-9.]*,"write_ms":' || return 1
	status 4 "$cli" sweep "$folder/sweep.yaml" && says 'job 1 of 8.*rates-1. exists'
}
check 'a sweep the whole way' whole
in_turn() {
	# "started" of each job is not before "ended" of the one that ran before it
	"$cli" jobs --tag rates --all --json | tr '}' '\n' |
		sed -n 's/.*"started":\([^,]*\),"ended":\([^,]*\).*/\1 \2/p' | sort >"$folder/times"
	[ "$(wc -l <"$folder/times")" -eq 8 ] || { cat "$folder/times"; return 1; }
	awk 'NR > 1 && $1 < last { print "two at a time:", $0; bad = 1 } { last = $2 } END { exit bad }' "$folder/times"
}
check 'one at a time' in_turn


# What differs, what came of it; an evaluation has the settings of its model's training.
compared() {
	status 0 "$cli" compare --tag rates --kind eval || return 1
	says '^job  *kind  *model  *state  *model.layers  *train.lr  *samples  *perplexity  *loss' || return 1
	says 'eval  *rates-3  *done  *1  *0.0003  *2  *[0-9.]*  *[0-9.]*  *[0-9]*$' || return 1
	status 0 "$cli" compare --tag rates --csv || return 1
	says '^job,kind,model,state,' && says ',train,rates-4,done,2,' || return 1
	[ "$(printf '%s\n' "$out" | wc -l)" -eq 9 ] || { echo "$out"; return 1; }
	status 0 "$cli" compare --tag rates --json || return 1
	says '"model":"rates-2","state":"done","settings":{[^}]*"model.layers":"2"[^}]*},"result":{' || return 1
	status 0 "$cli" compare 1 1 --json && says '"settings":{}' || return 1
	status 2 "$cli" compare && status 2 "$cli" compare 1 --kind poem && status 4 "$cli" compare 1 --kind eval
}
check 'they are compared' compared

# A sweep of autoencoders: the base says by its settings that it is one; a model's evaluations do not fit.
cat >"$folder/look.yaml" <<END
model: {channels: [8, 8], blocks: 1, latent_channels: 4, downsample: 4, groups: 4}
train: {steps: 2, batch: 2, warmup: 1}
eval: {every: 2}
save: {every: 2}
data: [{name: dots}]
END
cat >"$folder/looks.yaml" <<END
name: looks
base: look.yaml
grid:
  loss.kl: [1e-4, 1e-6]
END
# Two pictures of 8 x 8, one bright to the right, one downwards.
dots() {
	mkdir -p "$folder/dots" || return 1
	base64 -d >"$folder/dots/right.png" <<-END
		iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAJklEQVR42mPQ0NBwc3NLSUlpampasGDBvn377ty58+vXL4ahJQEAG89swSY+7rUAAAAASUVORK5CYII=
	END
	base64 -d >"$folder/dots/down.png" <<-END
		iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAJklEQVR42mPQwAEY3HAAhhQcgKEJB2BYgAMw7MMBGO7gAAy/cAAA9GpswXTa3h0AAAAASUVORK5CYII=
	END
	for i in 1 2 3; do cp "$folder/dots/right.png" "$folder/dots/$i.png"; done
	status 0 "$cli" data import dots "$folder/dots" --size 8 -w
}
check 'pictures' dots
looks() {
	status 0 "$cli" sweep "$folder/looks.yaml" --dry-run && says 'vae  *looks-2  *1e-6' || return 1
	sed 's/1e-6/never/' "$folder/looks.yaml" >"$folder/wrong.yaml"
	status 2 "$cli" sweep "$folder/wrong.yaml" && says "wrong.yaml:4: looks-2.*loss.kl: found 'never'" || return 1
	{ cat "$folder/looks.yaml"; echo 'eval: {task: loss, data: dots}'; } >"$folder/wrong.yaml"
	status 2 "$cli" sweep "$folder/wrong.yaml" && says 'wrong.yaml:5: eval' || return 1
	status 0 "$cli" sweep "$folder/looks.yaml" -w || return 1
	says '^2 jobs are submitted' && says 'looks-1): done' && says 'looks-2): done' || return 1
	status 0 "$cli" vae list && says 'looks-1 ' && says 'looks-2 ' || return 1
	status 0 "$cli" compare --tag looks --json && says '"loss.kl":"0.0001"' && says '"loss.kl":"1e-06"'
}
check 'a sweep of autoencoders' looks

# A bound of memory that the weights exceed; a sanitizer needs more than any bound for itself.
starved() {
	sed 's/dim: 16/dim: 512/; s/ff: 32/ff: 8192/' "$folder/base.yaml" >"$folder/large.yaml"
	status 1 "$cli" train large "$folder/large.yaml" --mem 64M --retry oom=1:0 -w || return 1
	says 'no memory for .*(oom 2 of 2)' || return 1
	status 0 "$cli" jobs --all --limit 1 --json && says '"failures":{"oom":2}'
}
if [ -n "${TF_SANITIZED:-}" ]; then skip 'a worker without memory is tried again' 'sanitizers'
else check 'a worker without memory is tried again' starved; fi
finish
