/* SPDX-License-Identifier: Apache-2.0
 * Groups of a user's jobs, of which so many run at a time; see share.h. A group is there as long as
 * a job of it has not ended. */
#include "config.h"
#include "daemon/share.h"
#include "lib/mem.h"

#include <stdio.h>
#include <string.h>

static int compare(const struct group *g, const struct user_share *user, const char *name)
{
	int order = strcmp(g->user->name, user->name);

	return order ? order : strcmp(g->name, name);
}

static size_t place_of(const struct shares *s, const struct user_share *user, const char *name)
{
	size_t low = 0, high = s->groups;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (compare(s->group[middle], user, name) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

struct group *group_find(const struct shares *s, const struct user_share *user, const char *name)
{
	size_t i = place_of(s, user, name);

	return i < s->groups && compare(s->group[i], user, name) == 0 ? s->group[i] : NULL;
}

struct group *group_enter(struct shares *s, struct user_share *user, const char *name)
{
	size_t i = place_of(s, user, name);
	struct group *g = group_find(s, user, name);

	if (!g) {
		g = xcalloc(1, sizeof *g);
		g->user = user;
		snprintf(g->name, sizeof g->name, "%s", name);
		s->group = xrealloc(s->group, s->groups + 1, sizeof *s->group);
		memmove(s->group + i + 1, s->group + i, (s->groups - i) * sizeof *s->group);
		s->group[i] = g;
		s->groups++;
		user->groups++;
	}
	g->jobs++;
	return g;
}

void group_leave(struct shares *s, struct group *g)
{
	size_t i = place_of(s, g->user, g->name);

	CHECK(g->jobs > 0 && i < s->groups && s->group[i] == g);
	if (--g->jobs > 0)
		return;
	g->user->groups--;
	s->groups--;
	memmove(s->group + i, s->group + i + 1, (s->groups - i) * sizeof *s->group);
	xfree(g);
}

void groups_release(struct shares *s)
{
	for (size_t i = 0; i < s->groups; i++)
		xfree(s->group[i]);
	xfree(s->group);
	s->groups = 0;
	for (size_t i = 0; i < s->count; i++)
		s->user[i]->groups = 0;
}
