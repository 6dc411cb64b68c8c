/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest that writes nonsense to every port, in every width, and reads it back; then to the windows of memory-mapped
 * devices and to PCI configuration space. Whatever happens is the guest's own fault; what counts is that the VMM neither
 * crashes nor hangs. It says how far it came; ports that end the machine are left for last.
 */
#include "tk.h"

static uint32_t seed = 20240607;

static uint32_t any(void)
{
    seed = seed * 1664525u + 1013904223u;
    return seed >> 7;
}

static void outl(uint16_t port, uint32_t v)
{
    __asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(port) : "memory");
}

static void outw(uint16_t port, uint16_t v)
{
    __asm__ volatile("outw %0, %1" : : "a"(v), "Nd"(port) : "memory");
}

static uint32_t inl(uint16_t port)
{
    uint32_t v;

    __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port) : "memory");
    return v;
}

/* Ports that may end, reset or silence this machine: power management, keyboard controller, reset control, debug exit,
 * the panic report, the serial line that we talk on, PCI addresses (done below, with the BARs left alone). */
static bool spared(uint32_t port)
{
    return (port >= 0x3f8 && port <= 0x3ff) || port == 0x64 || port == 0x92 || (port >= 0xcf8 && port <= 0xcff) ||
           (port >= 0x500 && port <= 0x505) || (port >= 0x600 && port <= 0x640) || (port >= 0xb000 && port <= 0xb03f) ||
           port == 0x402;
}

static void ports(unsigned rounds)
{
    uint32_t sum = 0;

    for (unsigned r = 0; r < rounds; r++)
        for (uint32_t port = 0; port < 0x10000; port++) {
            if (spared(port) || spared(port + 1) || spared(port + 2) || spared(port + 3))
                continue;
            switch (any() % 6) {
            case 0:
                outb((uint16_t)port, (uint8_t)any());
                break;
            case 1:
                outw((uint16_t)port, (uint16_t)any());
                break;
            case 2:
                outl((uint16_t)port, any());
                break;
            case 3:
                sum += inb((uint16_t)port);
                break;
            case 4:
                sum += inl((uint16_t)port);
                break;
            default:
                outb((uint16_t)port, 0xff);
                outb((uint16_t)port, 0);
                break;
            }
        }
    tk_say("port sum %x", sum);
    CHECK(true, "every-port");
}

/* Low ports harder: that is where the devices with state machines are. */
static void low_ports(void)
{
    for (unsigned r = 0; r < 100000; r++) {
        uint32_t port = any() % 0x400;

        if (spared(port))
            continue;
        if (any() & 1)
            outb((uint16_t)port, (uint8_t)any());
        else
            inb((uint16_t)port);
    }
    CHECK(true, "low-ports-at-random");
}

static void pci(void)
{
    uint32_t found = 0;

    for (uint32_t slot = 0; slot < 32; slot++)
        for (uint32_t fn = 0; fn < 8; fn++)
            for (uint32_t reg = 0; reg < 256; reg += 4) {
                uint32_t address = 0x80000000u | slot << 11 | fn << 8 | reg;

                outl(0xcf8, address);
                found += reg == 0 && inl(0xcfc) != 0xffffffff;
                if (reg >= 0x10 && reg < 0x30) {
                    outl(0xcfc, 0xffffffff); /* what a driver does to learn a BAR's size */
                    inl(0xcfc);
                    outl(0xcf8, address);
                    outl(0xcfc, any());
                } else if (reg != 0x04 && (slot != 1 || fn != 3)) { /* not the power management function */
                    outl(0xcfc, any());
                    outb((uint16_t)(0xcfc + any() % 4), (uint8_t)any());
                    inb((uint16_t)(0xcfc + any() % 4));
                }
            }
    outl(0xcf8, any());
    tk_say("%u PCI functions", found);
    CHECK(found > 0, "pci-configuration");
}

static void memory_mapped(void)
{
    static const uint32_t windows[] = {0xfed00000, 0xfec00000, 0xfee00000, 0xfebc0000, 0xfe000000, 0xe0000000, 0xf0000000,
                                       0xa0000, 0xb8000, 0xc0000, 0xf0000, 0xfff00000, 0xfd000000, 0xc0000000};

    for (unsigned w = 0; w < sizeof(windows) / sizeof(windows[0]); w++)
        for (unsigned r = 0; r < 3000; r++) {
            volatile uint8_t *p = (volatile uint8_t *)(uintptr_t)(windows[w] + any() % 0x10000u);

            switch (any() % 6) {
            case 0:
                *p = (uint8_t)any();
                break;
            case 1:
                *(volatile uint32_t *)p = any();
                break;
            case 2:
                (void)*(volatile uint32_t *)p;
                break;
            case 3:
                __asm__ volatile("lock; xaddl %0, (%1)" : "+r"(seed) : "r"(p) : "memory", "cc");
                break;
            case 4: {
                tk_word d = (tk_word)(uintptr_t)p, n = any() % 64;

                __asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(any()) : "memory");
                break;
            }
            default:
                *(volatile uint16_t *)p = (uint16_t)any();
                break;
            }
        }
    CHECK(true, "memory-mapped-devices");
}

void tk_main(void)
{
    CHECK(true, "starts");
    pci();
    ports(2);
    low_ports();
    memory_mapped();
    /* Now what was spared, except the debug exit and our serial line. */
    for (unsigned r = 0; r < 200; r++) {
        outb(0x64, (uint8_t)(any() & 0x7f));
        outb(0x60, (uint8_t)any());
    }
    CHECK(true, "keyboard-controller");
}
