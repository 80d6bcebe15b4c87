/* SPDX-License-Identifier: Apache-2.0
 * Libraries of the vendor that are opened by name (lib/library.h): cuBLASLt and cuDNN take tens of
 * milliseconds to load, which a job that does not use a GPU must not pay. Their headers say what
 * the functions are; each user lists those that it calls, FUNCTIONS(F), and makes of the list the
 * first members of a struct and the names to look for. */
#ifndef KERNELS_CUDA_LIBRARY_CUH
#define KERNELS_CUDA_LIBRARY_CUH

extern "C" {
#include "lib/library.h"
}

#define LIBRARY_POINTER(name) decltype(&::name) name;

#endif
