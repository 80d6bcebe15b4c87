# SPDX-License-Identifier: Apache-2.0
# Completion of transfuse for bash; made by `transfuse completion`.
_transfuse() {
	local current=${COMP_WORDS[COMP_CWORD]} verb=${COMP_WORDS[1]} subs= words=
	case $verb in
	user) subs='add list revoke rotate role' ;;
	data) subs='import list show sample verify delete export' ;;
	tokenizer) subs='train import list show delete export' ;;
	vae) subs='train list show delete export' ;;
	model) subs='list show delete export' ;;
	slots) subs='drain resume forget' ;;
	esac
	if [ "$COMP_CWORD" -eq 1 ]; then
		words='ping version status doctor key login user audit noop data tokenizer vae check train sweep generate eval jobs submit show logs wait compare cancel hold release requeue fetch models model gc usage drain top slots'
	elif [ "$COMP_CWORD" -eq 2 ] && [ -n "$subs" ]; then
		words=$subs
	else
	[ -z "$subs" ] || verb="$verb ${COMP_WORDS[2]}"
	case $verb in
	'ping') words='--endpoint --key --server-key --as --help' ;;
	'version') words='--endpoint --key --server-key --as --help --json' ;;
	'status') words='--endpoint --key --server-key --as --help --json' ;;
	'doctor') words='--endpoint --key --server-key --as --help' ;;
	'key') words='--endpoint --key --server-key --as --help' ;;
	'login') words='--endpoint --key --server-key --as --help' ;;
	'user add') words='--endpoint --key --server-key --as --help' ;;
	'user list') words='--endpoint --key --server-key --as --help --json' ;;
	'user revoke') words='--endpoint --key --server-key --as --help' ;;
	'user rotate') words='--endpoint --key --server-key --as --help' ;;
	'user role') words='--endpoint --key --server-key --as --help' ;;
	'audit') words='--endpoint --key --server-key --as --help --json --user --count --since' ;;
	'noop') words='--endpoint --key --server-key --as --help --json --wait --dry-run --name --after --after-any --after-failed --hold --tag --threads --device --gpus --gpu-mem --cpus --mem --project --priority --time --begin --deadline --retries --retry --seconds' ;;
	'data import') words='--endpoint --key --server-key --as --help --json --wait --dry-run --name --after --after-any --after-failed --hold --tag --threads --device --gpus --gpu-mem --cpus --mem --project --priority --time --begin --deadline --retries --retry --tokenizer --vae --size --holdout --heldout --on-server --format' ;;
	'data list') words='--endpoint --key --server-key --as --help --json' ;;
	'data show') words='--endpoint --key --server-key --as --help --json' ;;
	'data sample') words='--endpoint --key --server-key --as --help --json --count --seed' ;;
	'data verify') words='--endpoint --key --server-key --as --help --json' ;;
	'data delete') words='--endpoint --key --server-key --as --help --json' ;;
	'data export') words='--endpoint --key --server-key --as --help --output' ;;
	'tokenizer train') words='--endpoint --key --server-key --as --help --json --wait --dry-run --name --after --after-any --after-failed --hold --tag --threads --device --gpus --gpu-mem --cpus --mem --project --priority --time --begin --deadline --retries --retry --on-server --from --from-data --pieces' ;;
	'tokenizer import') words='--endpoint --key --server-key --as --help --json --wait --dry-run --name --after --after-any --after-failed --hold --tag --threads --device --gpus --gpu-mem --cpus --mem --project --priority --time --begin --deadline --retries --retry' ;;
	'tokenizer list') words='--endpoint --key --server-key --as --help --json' ;;
	'tokenizer show') words='--endpoint --key --server-key --as --help --json' ;;
	'tokenizer delete') words='--endpoint --key --server-key --as --help --json' ;;
	'tokenizer export') words='--endpoint --key --server-key --as --help --output' ;;
	'vae train') words='--endpoint --key --server-key --as --help --json --wait --dry-run --name --after --after-any --after-failed --hold --tag --threads --device --gpus --gpu-mem --cpus --mem --project --priority --time --begin --deadline --retries --retry --set --resume' ;;
	'vae list') words='--endpoint --key --server-key --as --help --json' ;;
	'vae show') words='--endpoint --key --server-key --as --help --json' ;;
	'vae delete') words='--endpoint --key --server-key --as --help --json' ;;
	'vae export') words='--endpoint --key --server-key --as --help --output' ;;
	'check') words='--endpoint --key --server-key --as --help --json --device --pieces --set --latent --settings' ;;
	'train') words='--endpoint --key --server-key --as --help --json --wait --dry-run --name --after --after-any --after-failed --hold --tag --threads --device --gpus --gpu-mem --cpus --mem --project --priority --time --begin --deadline --retries --retry --set --resume' ;;
	'sweep') words='--endpoint --key --server-key --as --help --json --wait --dry-run --after --after-any --after-failed --hold --tag --threads --device --gpus --gpu-mem --cpus --mem --project --priority --time --begin --deadline --retries --retry --set' ;;
	'generate') words='--endpoint --key --server-key --as --help --json --wait --dry-run --name --after --after-any --after-failed --hold --tag --threads --device --gpus --gpu-mem --cpus --mem --project --priority --time --begin --deadline --retries --retry --output --count --seed --prompt --prompts --image --steps --guidance --temperature --top-p --sampler --mode --max-tokens --clamp' ;;
	'eval') words='--endpoint --key --server-key --as --help --json --wait --dry-run --name --after --after-any --after-failed --hold --tag --threads --device --gpus --gpu-mem --cpus --mem --project --priority --time --begin --deadline --retries --retry --limit --seed --steps --guidance --sampler --task --data --split --batch --sheet --dump' ;;
	'jobs') words='--endpoint --key --server-key --as --help --json --name --tag --all --limit --state --user --kind --counts' ;;
	'submit') words='--endpoint --key --server-key --as --help --json --batch' ;;
	'show') words='--endpoint --key --server-key --as --help --json' ;;
	'logs') words='--endpoint --key --server-key --as --help --follow' ;;
	'wait') words='--endpoint --key --server-key --as --help --json --tag --state --any --timeout' ;;
	'compare') words='--endpoint --key --server-key --as --help --json --tag --kind --csv' ;;
	'cancel') words='--endpoint --key --server-key --as --help --json --tag' ;;
	'hold') words='--endpoint --key --server-key --as --help --json --tag' ;;
	'release') words='--endpoint --key --server-key --as --help --json --tag' ;;
	'requeue') words='--endpoint --key --server-key --as --help --json --tag' ;;
	'fetch') words='--endpoint --key --server-key --as --help --all --output' ;;
	'models') words='--endpoint --key --server-key --as --help --json' ;;
	'model list') words='--endpoint --key --server-key --as --help --json' ;;
	'model show') words='--endpoint --key --server-key --as --help --json' ;;
	'model delete') words='--endpoint --key --server-key --as --help --json' ;;
	'model export') words='--endpoint --key --server-key --as --help --output' ;;
	'gc') words='--endpoint --key --server-key --as --help --json --dry-run' ;;
	'usage') words='--endpoint --key --server-key --as --help --json --user --by --since --until --csv' ;;
	'drain') words='--endpoint --key --server-key --as --help --resume --stop' ;;
	'top') words='--endpoint --key --server-key --as --help --json --limit --every --once' ;;
	'slots') words='--endpoint --key --server-key --as --help --json' ;;
	'slots drain') words='--endpoint --key --server-key --as --help --reason' ;;
	'slots resume') words='--endpoint --key --server-key --as --help' ;;
	'slots forget') words='--endpoint --key --server-key --as --help' ;;
	esac
	[[ $current == -* ]] || words=
	fi
	COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _transfuse transfuse
