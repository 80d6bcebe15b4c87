/* SPDX-License-Identifier: Apache-2.0
 * Which jobs a list is asked for: of several states, users or kinds one must fit, of
 * several tags all. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/job.h"
#include "lib/mem.h"

#include <fnmatch.h>
#include <string.h>

_Static_assert(TF__JOB_STATE__CANCELLED < 32 && TF__JOB_KIND__NOOP < 32, "masks have 32 bits");

int job_filter_init(struct job_filter *f, const Tf__JobList *m, struct err *e)
{
	const struct {
		const char *field;
		size_t count;
	} list[] = { { "state", m->n_state },
		     { "user", m->n_user },
		     { "kind", m->n_kind },
		     { "tag", m->n_tag } };

	*f = (struct job_filter){ .asked = m, .all = m->all };
	for (size_t i = 0; i < ARRAY_LEN(list); i++)
		FAIL_IF(list[i].count > LIMIT_FILTERS, e, TF_ELIMIT,
			"%s is given %zu times, at most %u are allowed", list[i].field,
			list[i].count, LIMIT_FILTERS);
	FAIL_IF(m->name && strlen(m->name) > LIMIT_NAME_BYTES, e, TF_ELIMIT,
		"name is a pattern of %zu bytes, at most %u are allowed", strlen(m->name),
		LIMIT_NAME_BYTES);
	for (size_t i = 0; i < m->n_state; i++) {
		f->states |= 1u << m->state[i];
		f->all |= job_state_is_end(m->state[i]);
	}
	for (size_t i = 0; i < m->n_kind; i++)
		f->kinds |= 1u << m->kind[i];
	return 0;
}

static bool user_fits(const Tf__JobList *m, const char *user)
{
	for (size_t i = 0; i < m->n_user; i++)
		if (strcmp(m->user[i], user ? user : "") == 0)
			return true;
	return m->n_user == 0;
}

static bool has_tag(const Tf__Job *j, const char *tag)
{
	for (size_t i = 0; i < j->n_tag; i++)
		if (strcmp(j->tag[i], tag) == 0)
			return true;
	return false;
}

bool job_filter_takes(const struct job_filter *f, const Tf__Job *j)
{
	if ((f->states && !(f->states >> j->state & 1)) || (f->kinds && !(f->kinds >> j->kind & 1)))
		return false;
	if (!f->asked)
		return true;
	if (f->asked->name && fnmatch(f->asked->name, j->name ? j->name : "", 0) != 0)
		return false;
	for (size_t i = 0; i < f->asked->n_tag; i++)
		if (!has_tag(j, f->asked->tag[i]))
			return false;
	return user_fits(f->asked, j->user);
}
