/* SPDX-License-Identifier: Apache-2.0
 * Sweep files: one experiment, many points of it. doc/evaluation.md shows one. */
#ifndef CLIENT_SWEEP_H
#define CLIENT_SWEEP_H

#include "client/client.h"
#include "lib/yaml.h"
#include "proto/experiment.h"

/* One setting of a point, by its dotted name; borrowed from the file. */
struct sweep_setting {
	const char *key;
	const struct yaml_node *value;
};

struct sweep_point {
	char *name;                  /* of its model: the sweep's, and a number from 1 */
	struct sweep_setting *set;   /* what makes it differ from the others */
	size_t sets;
	struct buf experiment;       /* resolved: it stands for itself */
	int64_t *step;               /* of the checkpoints that are there when it is done */
	size_t steps;
};

/* What follows on each point, when it is done. */
struct sweep_eval {
	char *checkpoint;            /* "", "best", a step ...; "every": each that is kept */
	bool every, ema;
	char *json;                  /* of the EvalSpec, without the model */
};

struct sweep {
	struct yaml file;
	char *name, *base;
	int64_t at_once;             /* 0: as many as there is room for */
	struct yaml_node *settings, *grid, *list, *evals;
	enum experiment_kind kind;
	const char **key;            /* every name that a point sets, in the file's order */
	size_t keys;
	struct sweep_point *point;
	size_t points;
	struct sweep_eval *eval;
	size_t evaluations;          /* of each point */
};

/* Reads and expands the file; set are "a.b=c" that go over every point. Mistakes name file, line,
 * field, value and what was expected. Release it after an error too. */
int sweep_read(const char *path, const struct words *set, struct sweep *out, struct err *e);
void sweep_release(struct sweep *s);
/* A JobSpec as JSON: what is measured of the point's model; step: of `every` the one, else 0. The
 * caller's. */
char *sweep_eval_json(const struct sweep *s, size_t point, const struct sweep_eval *eval,
		      int64_t step);
/* How many jobs the evaluation is of this point. */
size_t sweep_eval_count(const struct sweep_point *p, const struct sweep_eval *eval);
/* The value a point gives to a name; NULL: none. */
const struct yaml_node *sweep_value(const struct sweep_point *p, const char *key);

#endif
