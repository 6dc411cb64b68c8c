/* SPDX-License-Identifier: Apache-2.0 */
/* Compiled twice, for protected mode (-m32) and for long mode (-m64). */
#include "tk.h"

#include <stdarg.h>

#define COM1 0x3f8
#define DEBUG_EXIT 0x501

volatile struct tk_got tk_got;
volatile tk_word tk_try_resume, tk_try_ip;
struct tk_frame tk_user_frame;
static int n_done, n_bad;
static void (*handlers[256])(struct tk_frame *);

/* Stubs of 16 bytes each, from start32.S and start64.S. */
extern char tk_stubs[];

#ifdef __x86_64__
static struct gate {
    uint16_t offset0, selector;
    uint8_t ist, type_dpl;
    uint16_t offset16;
    uint32_t offset32, zero;
} __attribute__((packed)) idt[256];
#else
static struct gate {
    uint16_t offset0, selector;
    uint8_t zero, type_dpl;
    uint16_t offset16;
} __attribute__((packed)) idt[256];
#endif

void *memset(void *to, int c, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ((volatile unsigned char *)to)[i] = (unsigned char)c;
    return to;
}

void *memcpy(void *to, const void *from, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ((volatile unsigned char *)to)[i] = ((const unsigned char *)from)[i];
    return to;
}

int memcmp(const void *a, const void *b, size_t n)
{
    const volatile unsigned char *x = a, *y = b;

    for (size_t i = 0; i < n; i++)
        if (x[i] != y[i])
            return x[i] - y[i];
    return 0;
}

static void put(char c)
{
    for (int i = 0; i < 100000 && !(inb(COM1 + 5) & 0x20); i++)
        ;
    outb(COM1, (uint8_t)c);
}

static void put_string(const char *s)
{
    while (*s)
        put(*s++);
}

static void put_number(tk_word v, unsigned base)
{
    char text[24];
    int at = sizeof(text) - 1;

    text[at] = 0;
    do {
        text[--at] = "0123456789abcdef"[v % base];
        v /= base;
    } while (v);
    put_string(text + at);
}

static void say_v(const char *format, va_list ap)
{
    for (; *format; format++) {
        if (*format != '%') {
            put(*format);
            continue;
        }
        switch (*++format) {
        case 's':
            put_string(va_arg(ap, const char *));
            break;
        case 'd': {
            int v = va_arg(ap, int);

            if (v < 0)
                put('-');
            put_number(v < 0 ? -(tk_word)v : (tk_word)v, 10);
            break;
        }
        case 'u':
            put_number(va_arg(ap, unsigned), 10);
            break;
        case 'x':
            put_number(va_arg(ap, unsigned), 16);
            break;
        case 'p':
            put_string("0x");
            put_number(va_arg(ap, tk_word), 16);
            break;
        }
    }
}

void tk_say(const char *format, ...)
{
    va_list ap;

    put_string("# ");
    va_start(ap, format);
    say_v(format, ap);
    va_end(ap);
    put('\n');
}

void tk_result(bool good, const char *name)
{
    n_done++;
    n_bad += !good;
    put_string(good ? "ok " : "not ok ");
    put_number((tk_word)n_done, 10);
    put(' ');
    put_string(name);
    put('\n');
    if (!good && tk_got.vector >= 0)
        tk_say("last trap: vector %d error %p ip %p (tried %p) cr2 %p", tk_got.vector, tk_got.error, tk_got.ip, tk_try_ip,
               tk_got.cr2);
}

void tk_equal(tk_word got, tk_word want, const char *name)
{
    if (got != want)
        tk_say("%s: got %p, want %p", name, got, want);
    tk_result(got == want, name);
}

void tk_skip(const char *name, const char *why)
{
    n_done++;
    put_string("ok ");
    put_number((tk_word)n_done, 10);
    put_string(" ");
    put_string(name);
    put_string(" # SKIP ");
    put_string(why);
    put('\n');
}

bool tk_tcg(void)
{
    uint32_t r[4];

    cpuid(1, 0, r);
    if (!(r[2] & 1u << 31))
        return false;
    cpuid(0x40000000, 0, r);
    return r[1] == 0x54474354 && r[2] == 0x43544743; /* TCGTCGTCGTCG */
}

void tk_exit(void)
{
    put_string("1..");
    put_number((tk_word)n_done, 10);
    put('\n');
    for (int i = 0; i < 100000 && !(inb(COM1 + 5) & 0x40); i++)
        ;
    outb(DEBUG_EXIT, n_bad ? 0x11 : 0x10);
    /* The VMM may take a moment to stop this CPU. */
    for (volatile uint32_t i = 0; i < 300000000; i++)
        __asm__ volatile("pause");
    put_string("# isa-debug-exit did not end this machine\n");
    for (;;)
        __asm__ volatile("cli; hlt");
}

void tk_on(int vector, void (*handler)(struct tk_frame *))
{
    handlers[vector] = handler;
}

void tk_gate(int vector, void (*entry)(void), int selector, int type_dpl, int ist)
{
    tk_word at = (tk_word)entry;
    struct gate g = {.offset0 = (uint16_t)at,
                     .selector = (uint16_t)selector,
                     .type_dpl = (uint8_t)type_dpl,
                     .offset16 = (uint16_t)(at >> 16)};

#ifdef __x86_64__
    g.ist = (uint8_t)ist;
    g.offset32 = (uint32_t)(at >> 32);
#else
    (void)ist;
#endif
    idt[vector] = g;
}

void tk_trap(struct tk_frame *f); /* called from the stubs */

void tk_trap(struct tk_frame *f)
{
    bool user = (f->cs & 3) == 3;

#ifndef __x86_64__
    user |= (f->flags >> 17) & 1;
#endif
    if (handlers[f->vector]) {
        handlers[f->vector](f);
        return;
    }
    tk_got = (struct tk_got){.vector = (int)f->vector,
                             .error = f->error,
                             .ip = f->ip,
                             .cr2 = f->vector == 14 ? READ_REG("cr2") : 0,
#ifdef __x86_64__
                             .sp = f->sp,
#endif
                             .cs = f->cs,
                             .flags = f->flags};
    if (user) {
        tk_user_frame = *f;
        tk_user_exit();
    }
    if (tk_try_resume) {
        f->ip = tk_try_resume;
        f->flags &= ~(tk_word)0x100;
        return;
    }
    tk_say("unexpected trap: vector %d error %p ip %p cs %p flags %p", tk_got.vector, f->error, f->ip, f->cs, f->flags);
    tk_result(false, "no-unexpected-trap");
    tk_exit();
}

struct idtr {
    uint16_t limit;
    tk_word base;
} __attribute__((packed));
extern const struct idtr tk_idtr; /* start64.S loads it on other CPUs */
const struct idtr tk_idtr = {sizeof(idt) - 1, (tk_word)idt};

void tk_init(void); /* called from the start code */

void tk_init(void)
{
    outb(COM1 + 1, 0);
    outb(COM1 + 3, 3);
    for (int i = 0; i < 256; i++)
        tk_gate(i, (void (*)(void))(tk_stubs + 16 * i), TK_CODE, i == 3 || i == 4 || i == 0x80 ? 0xee : 0x8e, 0);
    __asm__ volatile("lidt %0" : : "m"(tk_idtr));
    tk_got.vector = -1;
    /* Everything masked until a test asks for it. */
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    tk_main();
    tk_exit();
}

void tk_pic_setup(uint8_t base, uint16_t mask)
{
    outb(0x20, 0x11);
    outb(0xa0, 0x11);
    outb(0x21, base);
    outb(0xa1, (uint8_t)(base + 8));
    outb(0x21, 4);
    outb(0xa1, 2);
    outb(0x21, 1);
    outb(0xa1, 1);
    outb(0x21, (uint8_t)mask);
    outb(0xa1, (uint8_t)(mask >> 8));
}

/* Channel 2 in mode 0, gated by port 0x61; its output is bit 5 there. */
void tk_delay_us(uint32_t us)
{
    while (us) {
        uint32_t now = us > 50000 ? 50000 : us;
        uint32_t ticks = now * 1193u / 1000u + 1;

        us -= now;
        outb(0x61, (uint8_t)((inb(0x61) & ~3) | 1));
        outb(0x43, 0xb0);
        outb(0x42, (uint8_t)ticks);
        outb(0x42, (uint8_t)(ticks >> 8));
        while (!(inb(0x61) & 0x20))
            ;
    }
}
