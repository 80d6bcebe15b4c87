#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# All 3,655 emoji at 128 pixels with their names, a tenth of the names with skin tones held out: trains an
# autoencoder and a model, then evaluates every checkpoint. Meant for a GPU (some minutes); the daemon runs
# already, and transfuse is in PATH.
# usage: [DEVICE=cpu] emoji-128.sh PICTURES OUT [--set key=value ...]
#   PICTURES  what `emoji --size 128 PICTURES` of tools/ wrote
#   OUT       folder for the figures and the contact sheet
#   --set     settings of the model's training, e.g. --set train.steps=50 for a trial
set -eu
experiments=$(cd "$(dirname "$0")/../../etc" && pwd)
pictures=$1 out=$2 device=${DEVICE:-cuda}; shift 2
mkdir -p "$out"

# A tenth of the pictures whose names have a skin tone, spread by a hash of the name (every tenth of them in
# order would be one tone alone), one a line.
grep -l 'skin tone' "$pictures"/*.txt | awk -F/ '{
	name = $NF; sub(/\.txt$/, "", name); hash = 0
	for (i = 1; i <= length(name); i++)
		hash = (hash * 31 + index("abcdefghijklmnopqrstuvwxyz-0123456789", substr(name, i, 1))) % 1000003
	print hash * 7919 % 1000003, name
}' | sort -n | awk '{ name[NR] = $2 } END { for (i = 1; i <= NR / 10; i++) print name[i] }' >"$out/heldout"

transfuse data import emoji-pixels "$pictures" --size 128 --heldout "$out/heldout" --wait
transfuse tokenizer train words --from-data emoji-pixels --pieces 2000 --wait
transfuse vae train look "$experiments/vae-emoji-128.yaml" --device "$device" --wait --json >"$out/vae.json"
transfuse data import emoji "$pictures" --tokenizer words --vae look --size 128 --heldout "$out/heldout" \
	--device "$device" --wait
transfuse train emoji "$experiments/emoji-128.yaml" --device "$device" "$@" --wait --json >"$out/train.json"

# Each checkpoint: how many of the held-out names are drawn so that the nearest picture is the true one,
# and how many held-out pictures get their name.
transfuse model show emoji --json >"$out/model.json"
for step in $(sed -n 's/.*"checkpoints":"\([0-9 ]*\)".*/\1/p' "$out/model.json"); do
	transfuse eval "emoji:$step@ema" --task draw --data emoji --split heldout --limit 178 --steps 50 \
		--sampler ddim --guidance 3 --sheet "$out/sheet-$step.png" --wait --json
	transfuse eval "emoji:$step@ema" --task caption --data emoji --split heldout --limit 178 --wait --json
done | tee "$out/checkpoints.json"
