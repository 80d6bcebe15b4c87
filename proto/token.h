/* SPDX-License-Identifier: Apache-2.0
 * Tokens: a client's number of a submit or an upload, by which it may ask again for the same. The
 * daemon takes any sixteen bytes, and keeps them sorted: those that begin with the time lie beside
 * each other, so that the pages they are on are few (store/state.c counts the others). */
#ifndef PROTO_TOKEN_H
#define PROTO_TOKEN_H

#include "lib/err.h"

#include <stdint.h>

#define TOKEN_BYTES 16u
#define TOKEN_TIME_BYTES 7u /* microseconds since 1970, big-endian; the rest is random */

/* A token that nobody else makes, nor guesses. */
int token_make(uint8_t token[TOKEN_BYTES], struct err *e);

#endif
