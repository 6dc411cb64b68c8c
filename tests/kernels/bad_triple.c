/* SPDX-License-Identifier: Apache-2.0 */
/* A guest whose faults find no handler: the processor shuts down, which a PC turns into a reset. */
#include "tk.h"

void tk_main(void)
{
    static const struct {
        uint16_t limit;
        tk_word base;
    } __attribute__((packed)) nothing = {0, 0};

    CHECK(true, "before-the-triple-fault");
    __asm__ volatile("lidt %0; ud2" : : "m"(nothing));
}
