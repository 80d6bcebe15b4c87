/* SPDX-License-Identifier: Apache-2.0
 * Perplexity of text: exp of the mean loss per token, EOS included, BOS given. A text longer than
 * a sequence is read in pieces, each without the ones before it. Bits per byte compare tokenizers.
 */
#include "config.h"
#include "worker/eval.h"

#include <math.h>

int eval_perplexity(struct evaluation *ev, struct err *e)
{
	struct eval_sums s;
	double mean;

	FAIL_IF(ev->info->kind != DATASET_TEXT, e, TF_EINVALID,
		"perplexity is of text alone; '%s' holds %s: use the task loss", ev->spec->data,
		dataset_kind_name(ev->info->kind));
	TRY(eval_run_losses(ev, &s, NULL, NULL, e));
	FAIL_IF(s.targets == 0, e, TF_EINVALID, "'%s' has no tokens to predict", ev->spec->data);
	mean = s.lm / (double)s.targets;
	eval_result(ev, "perplexity", exp(mean));
	eval_result(ev, "loss", mean);
	eval_result(ev, "tokens", (double)s.targets);
	if (eval_samples(ev) == ev->info->samples[ev->split] && ev->info->text_bytes[ev->split])
		eval_result(ev, "bits_per_byte",
			    s.lm / M_LN2 / (double)ev->info->text_bytes[ev->split]);
	return 0;
}
