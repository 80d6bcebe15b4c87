/* SPDX-License-Identifier: Apache-2.0
 * Naming, finding, publishing and pruning checkpoints; see checkpoints.h. One process writes a
 * folder (the job that trains); others only read. */
#include "config.h"
#include "store/checkpoints.h"
#include "lib/buf.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PARTIAL_PREFIX "making-"
#define REPLACED_PREFIX "replaced-"
#define SCORE_BYTES_MAX 64

void checkpoint_name(uint64_t step, char out[CHECKPOINT_NAME_MAX])
{
	snprintf(out, CHECKPOINT_NAME_MAX, "step-%08" PRIu64, step);
}

bool checkpoint_parse(const char *name, uint64_t *step)
{
	char again[CHECKPOINT_NAME_MAX];

	if (strncmp(name, "step-", 5) != 0 || strlen(name) >= sizeof again ||
	    strspn(name + 5, "0123456789") != strlen(name + 5))
		return false;
	*step = strtoull(name + 5, NULL, 10);
	checkpoint_name(*step, again);
	return strcmp(again, name) == 0;
}

struct listing {
	const char *folder;
	struct checkpoint_entry *entry;
	size_t count;
};

static double read_score(const char *folder, const char *name)
{
	char *path = xasprintf("%s/%s/score", folder, name);
	struct buf text = BUF_INIT;
	double score = NAN;
	char *end;

	if (file_read(path, SCORE_BYTES_MAX, &text, NULL) == 0 && text.len > 0) {
		score = strtod(text.data, &end);
		if (end == text.data || *end != '\n' || !isfinite(score))
			score = NAN;
	}
	buf_release(&text);
	xfree(path);
	return score;
}

static int list_entry(void *arg, const char *name)
{
	struct listing *l = arg;
	uint64_t step;

	if (!checkpoint_parse(name, &step))
		return 0;
	l->entry = xrealloc(l->entry, l->count + 1, sizeof *l->entry);
	l->entry[l->count++] = (struct checkpoint_entry) { step, read_score(l->folder, name) };
	return 0;
}

static int by_step(const void *a, const void *b)
{
	uint64_t x = ((const struct checkpoint_entry *)a)->step;
	uint64_t y = ((const struct checkpoint_entry *)b)->step;

	return (x > y) - (x < y);
}

int checkpoints_list(const char *folder, struct checkpoint_entry **out, size_t *count,
		     struct err *e)
{
	struct listing l = { folder, NULL, 0 };
	int rc = dir_each(folder, list_entry, &l, e);

	if (rc < 0) {
		xfree(l.entry);
		return rc;
	}
	if (l.count)
		qsort(l.entry, l.count, sizeof *l.entry, by_step);
	*out = l.entry;
	*count = l.count;
	return 0;
}

/* The index of the least score; the last index when there is no score. */
static size_t best_of(const struct checkpoint_entry *entry, size_t count)
{
	size_t best = count - 1;

	for (size_t i = 0; i < count; i++)
		if (!isnan(entry[i].score) &&
		    (isnan(entry[best].score) || entry[i].score <= entry[best].score))
			best = i;
	return best;
}

static int find_in(const char *folder, const struct checkpoint_entry *entry, size_t count,
		   const char *which, uint64_t *step, struct err *e)
{
	char *end;
	uint64_t wanted;

	FAIL_IF(count == 0, e, TF_ENOTFOUND, "%s: no checkpoint yet", folder);
	if (!which || !*which || strcmp(which, "latest") == 0) {
		*step = entry[count - 1].step;
		return 0;
	}
	if (strcmp(which, "best") == 0) {
		*step = entry[best_of(entry, count)].step;
		return 0;
	}
	wanted = strtoull(which, &end, 10);
	FAIL_IF(strspn(which, "0123456789") != strlen(which) || *end, e, TF_EINVALID,
		"checkpoint '%s': expected latest, best or a step number", which);
	for (size_t i = 0; i < count; i++)
		if (entry[i].step == wanted) {
			*step = wanted;
			return 0;
		}
	return err_set(e, TF_ENOTFOUND,
		       "no checkpoint of step %" PRIu64 ": there are %zu, of steps %" PRIu64
		       " to %" PRIu64,
		       wanted, count, entry[0].step, entry[count - 1].step);
}

int checkpoints_find(const char *folder, const char *which, uint64_t *step, struct err *e)
{
	struct checkpoint_entry *entry = NULL;
	size_t count = 0;
	int rc;

	TRY(checkpoints_list(folder, &entry, &count, e));
	rc = find_in(folder, entry, count, which, step, e);
	xfree(entry);
	return rc;
}

struct sweep {
	const char *folder;
	struct err *e;
};

static int sweep_entry(void *arg, const char *name)
{
	struct sweep *s = arg;
	char *path;
	int rc;

	if (strncmp(name, PARTIAL_PREFIX, strlen(PARTIAL_PREFIX)) != 0 &&
	    strncmp(name, REPLACED_PREFIX, strlen(REPLACED_PREFIX)) != 0)
		return 0;
	path = xasprintf("%s/%s", s->folder, name);
	rc = dir_remove(path, s->e);
	xfree(path);
	return rc;
}

int checkpoint_begin(const char *folder, uint64_t step, char **path, struct err *e)
{
	struct sweep s = { folder, e };
	char name[CHECKPOINT_NAME_MAX];
	char *made;
	int rc;

	TRY(dir_each(folder, sweep_entry, &s, e));
	checkpoint_name(step, name);
	made = xasprintf("%s/" PARTIAL_PREFIX "%s", folder, name);
	rc = dir_make(made, 0755, e);
	if (rc < 0)
		xfree(made);
	else
		*path = made;
	return rc;
}

static int write_score(const char *path, double score, struct err *e)
{
	char *file = xasprintf("%s/score", path);
	char text[SCORE_BYTES_MAX] = "\n";
	int rc;

	if (isfinite(score))
		snprintf(text, sizeof text, "%.17g\n", score);
	rc = file_put(file, text, strlen(text), 0644, e);
	xfree(file);
	return rc;
}

int checkpoint_commit(const char *folder, uint64_t step, const char *path, double score,
		      struct err *e)
{
	char name[CHECKPOINT_NAME_MAX];
	char *to, *aside;
	int rc;

	checkpoint_name(step, name);
	to = xasprintf("%s/%s", folder, name);
	aside = xasprintf("%s/" REPLACED_PREFIX "%s", folder, name);
	rc = write_score(path, score, e);
	if (rc == 0)
		rc = dir_sync(path, e);
	if (rc == 0 && file_exists(to))
		rc = file_rename(to, aside, e);
	if (rc == 0)
		rc = file_rename(path, to, e);
	if (rc == 0)
		rc = dir_remove(aside, e);
	xfree(aside);
	xfree(to);
	return rc;
}

int checkpoint_set_aside(const char *folder, uint64_t step, char **aside, struct err *e)
{
	char name[CHECKPOINT_NAME_MAX];
	char *from;
	int rc;

	checkpoint_name(step, name);
	from = xasprintf("%s/%s", folder, name);
	*aside = xasprintf("%s/" REPLACED_PREFIX "%s", folder, name);
	rc = file_rename(from, *aside, e);
	if (rc < 0)
		xfree(*aside);
	xfree(from);
	return rc;
}

/* Never half a checkpoint under its name. */
static int remove_one(const char *folder, uint64_t step, struct err *e)
{
	char *aside = NULL;
	int rc = checkpoint_set_aside(folder, step, &aside, e);

	if (rc == 0)
		rc = dir_remove(aside, e);
	xfree(aside);
	return rc;
}

int checkpoints_superfluous(const char *folder, int64_t keep_last, int64_t keep_every,
			    uint64_t **step, size_t *count, struct err *e)
{
	struct checkpoint_entry *entry = NULL;
	size_t all = 0, best;

	CHECK(keep_last >= 1 && keep_every >= 0);
	*count = 0;
	TRY(checkpoints_list(folder, &entry, &all, e));
	*step = xcalloc(all + 1, sizeof **step);
	best = all ? best_of(entry, all) : 0;
	for (size_t i = 0; i + (size_t)keep_last < all; i++)
		if (i != best && !(keep_every && entry[i].step % (uint64_t)keep_every == 0))
			(*step)[(*count)++] = entry[i].step;
	xfree(entry);
	return 0;
}

int checkpoints_prune(const char *folder, int64_t keep_last, int64_t keep_every, struct err *e)
{
	uint64_t *step = NULL;
	size_t count = 0;
	int rc = checkpoints_superfluous(folder, keep_last, keep_every, &step, &count, e);

	for (size_t i = 0; rc == 0 && i < count; i++)
		rc = remove_one(folder, step[i], e);
	xfree(step);
	return rc;
}
