/* SPDX-License-Identifier: Apache-2.0 */
/* A guest that floods the serial line without ever looking whether it is ready. */
#include "tk.h"

void tk_main(void)
{
    CHECK(true, "before-the-flood");
    for (uint32_t i = 0; i < 4000000; i++)
        outb(0x3f8, (uint8_t)((i & 63) == 63 ? '\n' : ' ' + i % 64));
    outb(0x3f8, '\n');
    CHECK(true, "after-the-flood");
}
