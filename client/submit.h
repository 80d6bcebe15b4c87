/* SPDX-License-Identifier: Apache-2.0
 * Pieces of submitting that some verbs need before it. */
#ifndef CLIENT_SUBMIT_H
#define CLIENT_SUBMIT_H

#include "client/client.h"

/* Puts the common options into the spec and checks it all, before anything is sent. */
int submit_check(struct client *c, Tf__JobSpec *spec, struct err *e);

#endif
