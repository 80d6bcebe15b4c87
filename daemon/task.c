/* SPDX-License-Identifier: Apache-2.0
 * Work that may take long (removing folders, hashing and syncing uploads) runs in two threads,
 * which see nothing but their task. What follows from it is done in the loop: an eventfd says that
 * some finished. The number of tasks is bounded by what starts them (folders to remove, uploads).
 */
#include "config.h"
#include "daemon/daemon.h"
#include "lib/mem.h"

#include <pthread.h>
#include <errno.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define TASK_THREADS 2

struct tasks {
	pthread_t thread[TASK_THREADS];
	int threads;
	pthread_mutex_t mutex;
	pthread_cond_t wake;
	struct task *first, **last; /* to do */
	struct task *finished;
	bool closing;
	int fd;
};

static void *work(void *arg)
{
	struct tasks *ts = arg;
	uint64_t one = 1;

	pthread_mutex_lock(&ts->mutex);
	for (;;) {
		struct task *t = ts->first;

		if (!t && ts->closing)
			break;
		if (!t) {
			pthread_cond_wait(&ts->wake, &ts->mutex);
			continue;
		}
		ts->first = t->next;
		if (!ts->first)
			ts->last = &ts->first;
		pthread_mutex_unlock(&ts->mutex);
		t->run(t->arg);
		pthread_mutex_lock(&ts->mutex);
		t->next = ts->finished;
		ts->finished = t;
		if (write(ts->fd, &one, sizeof one) < 0)
			CHECK(errno == EAGAIN); /* the counter is full: it is readable */
	}
	pthread_mutex_unlock(&ts->mutex);
	return NULL;
}

int tasks_open(struct daemon *d, struct err *e)
{
	struct tasks *ts = xcalloc(1, sizeof *ts);

	pthread_mutex_init(&ts->mutex, NULL);
	pthread_cond_init(&ts->wake, NULL);
	ts->last = &ts->first;
	d->tasks = ts;
	d->task_fd = ts->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (ts->fd < 0)
		return err_errno(e, "eventfd");
	for (; ts->threads < TASK_THREADS; ts->threads++) {
		errno = pthread_create(&ts->thread[ts->threads], NULL, work, ts);
		if (errno)
			return err_errno(e, "a thread for work aside");
	}
	return 0;
}

void task_start(struct daemon *d, void (*run)(void *), void (*done)(struct daemon *, void *),
		void *arg)
{
	struct task *t = xcalloc(1, sizeof *t);
	struct tasks *ts = d->tasks;

	*t = (struct task){ run, done, arg, NULL };
	pthread_mutex_lock(&ts->mutex);
	*ts->last = t;
	ts->last = &t->next;
	pthread_cond_signal(&ts->wake);
	pthread_mutex_unlock(&ts->mutex);
}

void tasks_finish(struct daemon *d)
{
	struct tasks *ts = d->tasks;
	struct task *t, *next;
	uint64_t count;

	if (read(ts->fd, &count, sizeof count) < 0)
		CHECK(errno == EAGAIN);
	pthread_mutex_lock(&ts->mutex);
	t = ts->finished;
	ts->finished = NULL;
	pthread_mutex_unlock(&ts->mutex);
	for (; t; t = next) {
		next = t->next;
		t->done(d, t->arg);
		xfree(t);
	}
}

void tasks_close(struct daemon *d)
{
	struct tasks *ts = d->tasks;

	if (!ts)
		return;
	pthread_mutex_lock(&ts->mutex);
	ts->closing = true;
	pthread_cond_broadcast(&ts->wake);
	pthread_mutex_unlock(&ts->mutex);
	while (ts->threads > 0)
		pthread_join(ts->thread[--ts->threads], NULL);
	tasks_finish(d);
	if (ts->fd >= 0)
		close(ts->fd);
	pthread_cond_destroy(&ts->wake);
	pthread_mutex_destroy(&ts->mutex);
	xfree(d->tasks);
}
