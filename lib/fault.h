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

/* Holds a point for as long as a test wants, so that what it does meanwhile takes no luck: true
 * while the folder TF_HOLD has a file of the point's name, but for as many passages as the file
 * says (none when it is empty). passed is the caller's count of them, from 0. */
bool fault_held(const char *point, unsigned *passed);

#endif
