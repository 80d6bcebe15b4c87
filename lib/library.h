/* SPDX-License-Identifier: Apache-2.0
 * Shared libraries that are opened by name when something first needs them: programs start without
 * them, and run where they are not installed. */
#ifndef LIB_LIBRARY_H
#define LIB_LIBRARY_H

#include "lib/err.h"

#include <stddef.h>

/* Opens `file` as the loader finds it (LD_LIBRARY_PATH, ldconfig) and puts the address of names[i]
 * into functions[i]. TF_EUNSUPPORTED with a sentence that names the file, and what it lacks.
 * A library that was opened is never closed: it may have threads and handlers of its own. */
int library_open(const char *file, const char *const *names, size_t count, void **functions,
		 struct err *e);

/* A user lists the functions that it calls, FUNCTIONS(F), and makes of the list the first members
 * of a struct and the names to look for. (C++: kernels/cuda/library.cuh) */
#ifndef __cplusplus
#define LIBRARY_POINTER(name) __typeof__(name) *name;
#endif
#define LIBRARY_NAME(name) #name,
/* The file of a library's major version, as the loader knows it. */
#define LIBRARY_FILE(name, major) LIBRARY_FILE_(name, major)
#define LIBRARY_FILE_(name, major) name ".so." #major

#endif
