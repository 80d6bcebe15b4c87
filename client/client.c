/* SPDX-License-Identifier: Apache-2.0
 * Asking the daemon, and what an error means for the exit status. */
#include "config.h"
#include "client/client.h"
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
	struct connection_options o = { 0 };

	if (c->connection)
		return 0;
	TRY(place_find(&c->args, &c->place, e));
	o.endpoint = c->place.endpoint;
	o.server_key = c->place.server_key;
	o.keys = c->place.keys;
	o.key_file = c->place.key_file;
	o.as_user = args_text(&c->args, OPTION_AS);
	TRY(connection_open(&o, &c->connection, e));
	key_pair_wipe(&o.keys);
	connection_set_interrupt(c->connection, client_interrupted);
	sigaction(SIGINT, &action, NULL);
	return 0;
}

void client_release(struct client *c)
{
	connection_close(c->connection);
	place_release(&c->place);
}

static void note_refusal(struct client *c, int rc)
{
	c->refused = rc < 0 && rc != TF_ENODAEMON && rc != TF_ETIMEOUT && rc != TF_ECANCELLED;
}

static int wrong_answer(struct err *e)
{
	return err_set(e, TF_EINTERNAL, "the daemon gave an answer of another kind than asked for");
}

int client_ask_for(struct client *c, Tf__Request *r, Tf__Reply__BodyCase want, int64_t timeout_ms,
		   Tf__Reply **out, struct err *e)
{
	int rc;

	TRY(client_connect(c, e));
	rc = connection_call(c->connection, r, timeout_ms, out, e);
	note_refusal(c, rc);
	if (rc == 0 && (*out)->body_case != want) {
		tf__reply__free_unpacked(*out, NULL);
		*out = NULL;
		rc = wrong_answer(e);
	}
	return rc;
}

int client_ask(struct client *c, Tf__Request *r, Tf__Reply__BodyCase want, Tf__Reply **out,
	       struct err *e)
{
	return client_ask_for(c, r, want, ASK_MS, out, e);
}

int client_check(struct client *c, const Tf__Reply *reply, Tf__Reply__BodyCase want, struct err *e)
{
	if (reply->has_code && reply->code != 0) {
		note_refusal(c, reply->code);
		return err_set(e, reply->code < 0 ? reply->code : TF_EINTERNAL, "%s",
			       reply->text && *reply->text ? reply->text : err_text(reply->code));
	}
	return reply->body_case == want ? 0 : wrong_answer(e);
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
