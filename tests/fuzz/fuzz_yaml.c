/* SPDX-License-Identifier: Apache-2.0
 * Experiment files of both kinds, and the YAML tree under them: any bytes give a struct or a
 * sentence. */
#include "config.h"
#include "lib/yaml.h"
#include "proto/experiment.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void tree(const char *text, size_t size)
{
	struct err e = ERR_INIT;
	struct buf first = BUF_INIT, second = BUF_INIT;
	struct yaml y;

	if (yaml_parse("fuzz.yaml", text, size, &y, &e) == 0) {
		struct yaml again;

		yaml_write(&y, &first);
		CHECK(yaml_parse("again.yaml", first.data, first.len, &again, &e) == 0);
		yaml_write(&again, &second);
		CHECK(first.len == second.len && memcmp(first.data, second.data, first.len) == 0);
		yaml_release(&again);
		yaml_release(&y);
	} else {
		CHECK(e.code < 0 && e.text[0]);
	}
	buf_release(&first);
	buf_release(&second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *text = (const char *)data;
	struct err e = ERR_INIT;
	struct train_experiment train;
	struct vae_experiment vae;

	tree(text, size);
	if (train_experiment_read("fuzz.yaml", text, size, &train, &e) == 0)
		train_experiment_release(&train);
	err_clear(&e);
	if (vae_experiment_read("fuzz.yaml", text, size, &vae, &e) == 0)
		vae_experiment_release(&vae);
	return 0;
}
