/* SPDX-License-Identifier: Apache-2.0
 * Answers: those of this turn and those that wait for something. */
#ifndef DAEMON_REPLY_H
#define DAEMON_REPLY_H

#include "daemon/daemon.h"

/* ---- reply.c ---- */
/* Puts the reply (its version and id are filled in) into the outbox. */
void reply_put(struct daemon *d, struct request *r, Tf__Reply *reply);
/* A body packed piece by piece: an item of a list (field 1 of Jobs, Artefacts), of which the
 * first len bytes are packed already; whatever else is in the message; the reply with it. Items
 * have REPLY_LIST_BYTES together; the rest of a message is for what goes along. */
#define REPLY_LIST_BYTES (LIMIT_MESSAGE_BYTES - (256u << 10))
void reply_pack_item(struct buf *list, const void *packed, size_t len,
		     const ProtobufCMessage *rest);
void reply_pack_rest(struct buf *list, const ProtobufCMessage *rest);
void reply_put_packed(struct daemon *d, struct request *r, unsigned field, const struct buf *body);
void reply_ok(struct daemon *d, struct request *r);
void reply_error(struct daemon *d, struct request *r, int code, const char *text);
/* whole: with spec and inputs. */
void reply_job(struct daemon *d, struct request *r, uint64_t job, bool whole);
void reply_log(struct daemon *d, struct request *r, uint64_t job, uint64_t offset);
void order_put(struct daemon *d, struct worker *w, Tf__StopReason stop);
/* Tells the process, over w's connection, of a further attempt of its own. */
void join_put(struct daemon *d, const struct worker *w, const struct worker *further);
/* After the commit. committed false: every answer becomes TF_EUNKNOWN. */
void outbox_send(struct daemon *d, bool committed);
void outbox_release(struct outbox *o);

/* ---- wait.c ---- */
int wait_add(struct daemon *d, const struct request *r, enum wait_kind kind, uint64_t job,
	     uint64_t since, uint32_t timeout_ms, struct err *e);
void wait_answer(struct daemon *d, bool tick); /* those whose time or event has come */

#endif
