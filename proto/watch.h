/* SPDX-License-Identifier: Apache-2.0
 * ZeroMQ's events of a socket, for socket.c and peers.c. */
#ifndef PROTO_WATCH_H
#define PROTO_WATCH_H

#include "proto/wire.h"

/* Watches a socket for ZMQ_EVENT_... before it connects or is bound; wire_watch_close. */
int wire_watch_open(void *context, void *socket, int events, struct wire_watch **out,
		    struct err *e);
/* The next event's number, and its value; -1: none waits. */
int wire_watch_event(struct wire_watch *w, uint32_t *value);

#endif
