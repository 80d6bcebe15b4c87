/* SPDX-License-Identifier: Apache-2.0
 * Faults on demand; see fault.h. The variables are read once, at the first passage. */
#include "config.h"
#include "lib/fault.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FAULTS_MAX 16

static struct fault {
	char point[40];
	unsigned at, passed;
	char how; /* 0: once, '+': from then on, '!': kill */
} faults[FAULTS_MAX];
static int fault_count = -1;
static const char *hold_folder;
static pthread_once_t hold_once = PTHREAD_ONCE_INIT;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void read_faults(const char *text)
{
	fault_count = 0;
	while (text && *text && fault_count < FAULTS_MAX) {
		struct fault *f = &faults[fault_count];
		size_t n = strcspn(text, ",");

		if (n < 80 && sscanf(text, "%39[a-z-]:%u%c", f->point, &f->at, &f->how) >= 2) {
			if (f->how != '+' && f->how != '!')
				f->how = 0;
			fault_count++;
		}
		text += n;
		text += *text == ',';
	}
}

bool fault_hit(const char *point)
{
	bool hit = false;

	pthread_mutex_lock(&lock);
	if (fault_count < 0)
		read_faults(getenv("TF_FAULT"));
	for (int i = 0; i < fault_count; i++) {
		struct fault *f = &faults[i];

		if (strcmp(f->point, point) != 0)
			continue;
		f->passed++;
		if (f->passed == f->at && f->how == '!')
			kill(getpid(), SIGKILL);
		hit |= f->how == '+' ? f->passed >= f->at : f->passed == f->at;
	}
	pthread_mutex_unlock(&lock);
	return hit;
}

static void find_hold_folder(void)
{
	hold_folder = getenv("TF_HOLD");
}

bool fault_held(const char *point, unsigned *passed)
{
	unsigned through = 0;
	char path[512];
	FILE *f;

	pthread_once(&hold_once, find_hold_folder);
	if (!hold_folder)
		return false;
	snprintf(path, sizeof path, "%s/%s", hold_folder, point);
	f = fopen(path, "re");
	if (!f) {
		*passed = 0;
		return false;
	}
	if (fscanf(f, "%u", &through) != 1)
		through = 0;
	fclose(f);
	if (*passed >= through)
		return true;
	(*passed)++;
	return false;
}
