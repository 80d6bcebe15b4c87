/* SPDX-License-Identifier: Apache-2.0
 * Faults on demand, for tests: TF_FAULT=point:n[,point:n]... makes the n-th passage of a point fail
 * (n), that and all later ones (n+), or end the process there and then as kill -9 does (n!).
 * Without the variable a passage costs one comparison. Points are named where they are passed, e.g.
 * store-commit. */
#ifndef LIB_FAULT_H
#define LIB_FAULT_H

#include <stdbool.h>

/* Counts a passage of the point; true when it is to fail. Any thread may call it. */
bool fault_hit(const char *point);

#endif
