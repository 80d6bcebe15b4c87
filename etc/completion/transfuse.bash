# SPDX-License-Identifier: Apache-2.0
# Completion of transfuse for bash; made by `transfuse completion`.
_transfuse() {
	local current=${COMP_WORDS[COMP_CWORD]} verb=${COMP_WORDS[1]} subs= words=
	case $verb in
	data) subs='import list show sample verify delete export' ;;
	tokenizer) subs='train import list show delete export' ;;
	vae) subs='train list show delete export' ;;
	model) subs='list show delete export' ;;
	esac
	if [ "$COMP_CWORD" -eq 1 ]; then
		words='ping version status doctor key noop data tokenizer vae check train generate eval jobs show logs wait cancel fetch models model drain'
	elif [ "$COMP_CWORD" -eq 2 ] && [ -n "$subs" ]; then
		words=$subs
	else
	[ -z "$subs" ] || verb="$verb ${COMP_WORDS[2]}"
	case $verb in
	'ping') words='--endpoint --key --server-key --help' ;;
	'version') words='--endpoint --key --server-key --help --json' ;;
	'status') words='--endpoint --key --server-key --help --json' ;;
	'doctor') words='--endpoint --key --server-key --help' ;;
	'key') words='--endpoint --key --server-key --help' ;;
	'noop') words='--endpoint --key --server-key --help --json --wait --dry-run --name --after --threads --device --gpus --gpu-mem --cpus --mem --retries --seconds' ;;
	'data import') words='--endpoint --key --server-key --help --json --wait --dry-run --name --after --threads --device --gpus --gpu-mem --cpus --mem --retries --tokenizer --vae --size --holdout --heldout --on-server --format' ;;
	'data list') words='--endpoint --key --server-key --help --json' ;;
	'data show') words='--endpoint --key --server-key --help --json' ;;
	'data sample') words='--endpoint --key --server-key --help --json --count --seed' ;;
	'data verify') words='--endpoint --key --server-key --help --json' ;;
	'data delete') words='--endpoint --key --server-key --help --json' ;;
	'data export') words='--endpoint --key --server-key --help --output' ;;
	'tokenizer train') words='--endpoint --key --server-key --help --json --wait --dry-run --name --after --threads --device --gpus --gpu-mem --cpus --mem --retries --on-server --from --from-data --pieces' ;;
	'tokenizer import') words='--endpoint --key --server-key --help --json --wait --dry-run --name --after --threads --device --gpus --gpu-mem --cpus --mem --retries' ;;
	'tokenizer list') words='--endpoint --key --server-key --help --json' ;;
	'tokenizer show') words='--endpoint --key --server-key --help --json' ;;
	'tokenizer delete') words='--endpoint --key --server-key --help --json' ;;
	'tokenizer export') words='--endpoint --key --server-key --help --output' ;;
	'vae train') words='--endpoint --key --server-key --help --json --wait --dry-run --name --after --threads --device --gpus --gpu-mem --cpus --mem --retries --set --resume' ;;
	'vae list') words='--endpoint --key --server-key --help --json' ;;
	'vae show') words='--endpoint --key --server-key --help --json' ;;
	'vae delete') words='--endpoint --key --server-key --help --json' ;;
	'vae export') words='--endpoint --key --server-key --help --output' ;;
	'check') words='--endpoint --key --server-key --help --json --device --pieces --set --latent --settings' ;;
	'train') words='--endpoint --key --server-key --help --json --wait --dry-run --name --after --threads --device --gpus --gpu-mem --cpus --mem --retries --set --resume' ;;
	'generate') words='--endpoint --key --server-key --help --json --wait --dry-run --name --after --threads --device --gpus --gpu-mem --cpus --mem --retries --output --count --seed --prompt --prompts --image --steps --guidance --temperature --top-p --sampler --mode --max-tokens --clamp' ;;
	'eval') words='--endpoint --key --server-key --help --json --wait --dry-run --name --after --threads --device --gpus --gpu-mem --cpus --mem --retries --limit --seed --steps --guidance --sampler --task --data --split --batch --sheet --dump' ;;
	'jobs') words='--endpoint --key --server-key --help --json --name --all --limit --state --user --kind --counts' ;;
	'show') words='--endpoint --key --server-key --help --json' ;;
	'logs') words='--endpoint --key --server-key --help --follow' ;;
	'wait') words='--endpoint --key --server-key --help --json' ;;
	'cancel') words='--endpoint --key --server-key --help --json' ;;
	'fetch') words='--endpoint --key --server-key --help --all --output' ;;
	'models') words='--endpoint --key --server-key --help --json' ;;
	'model list') words='--endpoint --key --server-key --help --json' ;;
	'model show') words='--endpoint --key --server-key --help --json' ;;
	'model delete') words='--endpoint --key --server-key --help --json' ;;
	'model export') words='--endpoint --key --server-key --help --output' ;;
	'drain') words='--endpoint --key --server-key --help --resume --stop' ;;
	esac
	[[ $current == -* ]] || words=
	fi
	COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _transfuse transfuse
