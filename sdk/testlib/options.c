/* SPDX-License-Identifier: Apache-2.0
 *
 * The fake host parses options exactly as the real one does: with its code,
 * compiled into the installed library.
 */
#include "core/conf/options.c"
