/* SPDX-License-Identifier: Apache-2.0
 * Shared libraries opened by name; see library.h. */
#include "config.h"
#include "lib/library.h"

#include <dlfcn.h>

int library_open(const char *file, const char *const *names, size_t count, void **functions,
		 struct err *e)
{
	void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);

	FAIL_IF(!library, e, TF_EUNSUPPORTED, "a library cannot be opened: %s", dlerror());
	for (size_t i = 0; i < count; i++) {
		functions[i] = dlsym(library, names[i]);
		FAIL_IF(!functions[i], e, TF_EUNSUPPORTED, "the library %s has no %s", file,
			names[i]);
	}
	return 0;
}
