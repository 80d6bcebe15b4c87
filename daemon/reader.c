/* SPDX-License-Identifier: Apache-2.0
 * Looking into datasets for clients (data sample, data verify) happens in another process: this
 * program, started again as `transfused --read-dataset ...`. A damaged map can end that one, never
 * the daemon, and a long verification blocks nobody. Its answer is JSON text in a file without a
 * name. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/files.h"
#include "daemon/reply.h"
#include "daemon/spawn.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "store/dataset.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define READER_MS_MAX (6 * 3600 * 1000LL) /* a verification of terabytes */
#define ANSWER_BYTES_MAX (LIMIT_MESSAGE_BYTES - 4096)

/* Exit statuses of the other process. */
enum { READ_GOOD = 0, READ_BAD = 1, READ_ERROR = 2 };

static struct reader_process *free_reader(struct daemon *d)
{
	for (int i = 0; i < READER_PROCESSES_MAX; i++)
		if (d->reader[i].pidfd < 0)
			return &d->reader[i];
	return NULL;
}

int reader_start(struct daemon *d, const struct request *r, char *const *argv, struct err *e)
{
	struct reader_process *p = free_reader(d);
	struct spawn s = { .argv = argv, .extra = -1 };
	char **environment;
	int rc;

	FAIL_IF(!p, e, TF_EBUSY, "%d datasets are being read for others: try again later",
		READER_PROCESSES_MAX);
	p->output = memfd_create("transfused-read", MFD_CLOEXEC);
	if (p->output < 0)
		return err_errno(e, "a file for the answer");
	environment = spawn_env(1, NULL);
	s.environment = environment;
	s.output = p->output;
	rc = spawn_process(&s, &p->pid, &p->pidfd, e);
	spawn_env_free(environment);
	if (rc < 0) {
		close(p->output);
		p->output = -1;
		return rc;
	}
	p->request = *r;
	p->request.message = NULL;
	p->until_ms = clock_mono_ms() + READER_MS_MAX;
	return 0;
}

static void answer(struct daemon *d, struct reader_process *p, int status, char *text)
{
	Tf__Reply reply = TF__REPLY__INIT;
	Tf__TextResult result = TF__TEXT_RESULT__INIT;

	if (!WIFEXITED(status) || WEXITSTATUS(status) > READ_ERROR) {
		char why[200];

		snprintf(why, sizeof why, "the dataset is damaged: reading it ended with signal %d",
			 WIFSIGNALED(status) ? WTERMSIG(status) : 0);
		reply_error(d, &p->request, TF_ECORRUPT, why);
		return;
	}
	if (WEXITSTATUS(status) == READ_ERROR) {
		char *sentence = strchr(text, ' ');
		int code = atoi(text);

		reply_error(d, &p->request, code < 0 ? code : TF_EINTERNAL,
			    sentence ? sentence + 1 : text);
		return;
	}
	result.json = text;
	result.has_failed = true;
	result.failed = WEXITSTATUS(status) == READ_BAD;
	reply.body_case = TF__REPLY__BODY_TEXT_RESULT;
	reply.text_result = &result;
	reply_put(d, &p->request, &reply);
}

void reader_exited(struct daemon *d, struct reader_process *p)
{
	char *text = xcalloc(1, ANSWER_BYTES_MAX + 1);
	int status = 0;

	waitpid(p->pid, &status, 0);
	if (pread(p->output, text, ANSWER_BYTES_MAX, 0) < 0)
		log_error("an answer about a dataset cannot be read: %s", strerror(errno));
	answer(d, p, status, text);
	close(p->pidfd);
	close(p->output);
	p->pidfd = p->output = -1;
	xfree(text);
}

void reader_tick(struct daemon *d)
{
	int64_t now = clock_mono_ms();

	for (int i = 0; i < READER_PROCESSES_MAX; i++)
		if (d->reader[i].pidfd >= 0 && now > d->reader[i].until_ms)
			kill(d->reader[i].pid, SIGKILL);
}

/* ---------------------------------------------------------------- the other process */

static int verify(const char *folder, struct buf *out, bool *good, struct err *e)
{
	*good = false;
	return dataset_verify(folder, out, good, NULL, NULL, e);
}

int reader_main(int argc, char **argv)
{
	struct buf out = BUF_INIT;
	struct err e = ERR_INIT;
	bool good = true;
	int rc = 0;

	if (argc == 2 && strcmp(argv[0], "verify") == 0)
		rc = verify(argv[1], &out, &good, &e);
	else if (argc == 4 && strcmp(argv[0], "sample") == 0)
		rc = dataset_sample_json(argv[1], (uint32_t)strtoul(argv[2], NULL, 10),
					 strtoull(argv[3], NULL, 10), &out, &e);
	else
		rc = err_set(&e, TF_EUSAGE,
			     "--read-dataset sample FOLDER COUNT SEED | verify FOLDER");
	if (rc == 0 && out.len > ANSWER_BYTES_MAX)
		rc = err_set(&e, TF_ELIMIT,
			     "an answer of %zu bytes is over the limit: ask for less", out.len);
	if (rc < 0) {
		buf_clear(&out);
		buf_printf(&out, "%d %s", rc, e.text);
	}
	if (file_write_all(STDOUT_FILENO, out.data, out.len, "the answer", NULL) < 0)
		rc = TF_EIO;
	buf_release(&out);
	return rc < 0 ? READ_ERROR : good ? READ_GOOD : READ_BAD;
}
