#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Every backward operation of the reference against finite differences.
exec "${TF_BUILD:?}/tests/kernels/kernelcheck" grad
