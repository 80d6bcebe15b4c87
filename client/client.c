/* SPDX-License-Identifier: Apache-2.0
 * Asking the daemon, and what an error means for the exit status. */
#include "config.h"
#include "client/client.h"
#include "client/line.h"
#include "lib/mem.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static volatile sig_atomic_t interrupted;

static void interrupt(int number)
{
	(void)number;
	interrupted = 1;
}

bool client_interrupted(void)
{
	return interrupted != 0;
}

int client_connect(struct client *c, struct err *e)
{
	struct sigaction action = { .sa_handler = interrupt };
	struct place_given given = { args_text(&c->args, OPTION_ENDPOINT),
				     args_text(&c->args, OPTION_KEY),
				     args_text(&c->args, OPTION_SERVER_KEY) };
	int rc;

	if (c->connection)
		return 0;
	transfuse_close(c->line); /* of a try that failed */
	rc = line_open(&given, args_text(&c->args, OPTION_AS), &c->line, e);
	c->place = &c->line->place;
	TRY(rc);
	c->connection = c->line->connection;
	connection_set_interrupt(c->connection, client_interrupted);
	sigaction(SIGINT, &action, NULL);
	return 0;
}

void client_release(struct client *c)
{
	transfuse_close(c->line);
}

int client_note(struct client *c, int rc)
{
	c->refused = rc < 0 && rc != TF_ENODAEMON && rc != TF_ETIMEOUT && rc != TF_ECANCELLED;
	return rc;
}

int client_ask_for(struct client *c, Tf__Request *r, Tf__Reply__BodyCase want, int64_t timeout_ms,
		   Tf__Reply **out, struct err *e)
{
	TRY(client_connect(c, e));
	return client_note(c, line_ask(c->line, r, want, timeout_ms, out, e));
}

int client_ask(struct client *c, Tf__Request *r, Tf__Reply__BodyCase want, Tf__Reply **out,
	       struct err *e)
{
	return client_ask_for(c, r, want, ASK_MS, out, e);
}

int client_list_jobs(struct client *c, Tf__JobList *m, uint64_t most,
		     int (*fn)(void *arg, const Tf__Job *job), void *arg, struct err *e)
{
	TRY(client_connect(c, e));
	return client_note(c, line_list_jobs(c->line, m, most, fn, arg, e));
}

int client_check(struct client *c, const Tf__Reply *reply, Tf__Reply__BodyCase want, struct err *e)
{
	int rc = line_check(reply, want, e);

	return reply->has_code && reply->code != 0 ? client_note(c, rc) : rc;
}

enum status status_of(const struct client *c, int code)
{
	switch (code) {
	case TF_ENODAEMON:
	case TF_ETIMEOUT:
		return STATUS_NO_DAEMON;
	case TF_ECANCELLED:
		return STATUS_CANCELLED;
	case TF_EIO:
	case TF_ENOSPACE:
	case TF_ENOMEM:
	case TF_ECORRUPT:
	case TF_EINTERNAL:
		return c->refused ? STATUS_REFUSED : STATUS_FAILED;
	case TF_EREFUSED:
		return STATUS_REFUSED;
	default:
		return c->refused ? STATUS_REFUSED : STATUS_USAGE;
	}
}

int operand_job(const struct client *c, int i, uint64_t *id, struct err *e)
{
	int64_t n;

	TRY(text_to_int("the id of a job", c->args.operand.word[i], 1, INT64_MAX, &n, e));
	*id = (uint64_t)n;
	return 0;
}
