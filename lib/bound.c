/* SPDX-License-Identifier: Apache-2.0
 * Bounds that a test lowers; see bound.h. The variable is read once, at the first look. */
#include "config.h"
#include "lib/bound.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOWERED_MAX 8

static struct lowered {
	char name[40];
	unsigned long long value;
} lowered[LOWERED_MAX];
static int lowered_count;

static void read_bounds(void)
{
	const char *text = getenv("TF_BOUND");

	while (text && lowered_count < LOWERED_MAX) {
		struct lowered *l = &lowered[lowered_count];

		if (sscanf(text, "%39[a-z-]:%llu", l->name, &l->value) == 2)
			lowered_count++;
		text = strchr(text, ',');
		text += text != NULL;
	}
}

uint64_t bound(const char *name, uint64_t value)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, read_bounds);
	for (int i = 0; i < lowered_count; i++)
		if (strcmp(lowered[i].name, name) == 0 && lowered[i].value < value)
			value = lowered[i].value;
	return value;
}
