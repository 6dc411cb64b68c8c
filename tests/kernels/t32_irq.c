/* SPDX-License-Identifier: Apache-2.0 */
/* Interrupts: PIT through the 8259 pair, flags and shadows around them, soft interrupts, hlt. */
#include "tk.h"

static volatile uint32_t ticks, rtc_ticks, spurious;
static volatile tk_word ticked_ip;

static void on_tick(struct tk_frame *f)
{
    ticks++;
    if (!ticked_ip)
        ticked_ip = f->ip;
    outb(0x20, 0x20);
}

static void on_rtc(struct tk_frame *f)
{
    (void)f;
    rtc_ticks++;
    outb(0x70, 0x0c);
    inb(0x71);
    outb(0xa0, 0x20);
    outb(0x20, 0x20);
}

static void on_spurious(struct tk_frame *f)
{
    (void)f;
    spurious++;
}

static void pit_rate(uint16_t divisor)
{
    outb(0x43, 0x34);
    outb(0x40, (uint8_t)divisor);
    outb(0x40, (uint8_t)(divisor >> 8));
}

/* Waits for the PIC's request bit, so that an interrupt is known to be pending. */
static void wait_request(void)
{
    do
        outb(0x20, 0x0a);
    while (!(inb(0x20) & 1));
}

static void pic(void)
{
    uint32_t before;
    tk_word flags;

    tk_pic_setup(0x20, 0xfffe);
    tk_on(0x20, on_tick);
    tk_on(0x27, on_spurious);
    pit_rate(11932); /* 100 Hz */
    __asm__ volatile("sti");
    while (ticks < 3)
        __asm__ volatile("hlt");
    CHECK(true, "hlt-wakes-by-pit");
    before = ticks;
    while (ticks < before + 3)
        ;
    CHECK(true, "pit-interrupts-a-loop");
    __asm__ volatile("cli");
    wait_request();
    before = ticks;
    tk_delay_us(30000);
    EQUAL(ticks, before, "cli-holds-interrupts");
    /* STI shadow: the instruction behind it runs first. */
    __asm__ volatile("sti; cli" : : : "memory");
    EQUAL(ticks, before, "sti-cli-lets-nothing-in");
    tk_word at;
    ticked_ip = 0;
    __asm__ volatile("sti; nop; 1: nop; cli; movl $1b, %0" : "=r"(at) : : "memory");
    /* One tick at least: a machine may make up for those that were held off. */
    CHECK(ticks > before && ticked_ip == at, "sti-nop-then-interrupt");
    wait_request();
    before = ticks;
    __asm__ volatile("sti; mov %%ss, %%eax; mov %%eax, %%ss; 1: nop; 2: nop; cli; movl $2b, %0" : "=r"(at) : : "eax", "memory");
    CHECK(ticks > before, "interrupt-after-mov-ss");
    wait_request();
    before = ticks;
    __asm__ volatile("pushf; orl $0x200, (%%esp); popf; nop; cli" : : : "memory", "cc");
    CHECK(ticks > before, "popf-opens");
    wait_request();
    before = ticks;
    __asm__ volatile("pushf; orl $0x200, (%%esp); push %%cs; push $1f; iret; 1: nop; cli" : : : "memory", "cc");
    CHECK(ticks > before, "iret-opens");
    /* sti; hlt must not lose a wake-up. */
    before = ticks;
    for (int i = 0; i < 20; i++)
        __asm__ volatile("sti; hlt; cli" : : : "memory");
    CHECK(ticks >= before + 20, "sti-hlt-20-times");
    /* Masked at the PIC: pending, not delivered; then delivered. */
    outb(0x21, 0xff);
    before = ticks;
    __asm__ volatile("sti");
    tk_delay_us(30000);
    EQUAL(ticks, before, "masked-at-pic");
    outb(0x21, 0xfe);
    for (int i = 0; i < 300000 && ticks == before; i++)
        inb(0x80);
    CHECK(ticks > before, "unmasked-at-pic");
    __asm__ volatile("cli; pushf; pop %0" : "=r"(flags));
    CHECK(!(flags & 0x200), "if-clear");
    EQUAL(spurious, 0, "no-spurious");
}

/* IRQ 8 comes through the second PIC. */
static void rtc(void)
{
    tk_on(0x28, on_rtc);
    tk_pic_setup(0x20, 0xfefb);
    outb(0x70, 0x8a);
    outb(0x71, 0x26); /* 1024 Hz */
    outb(0x70, 0x8b);
    outb(0x71, 0x42);
    outb(0x70, 0x0c);
    inb(0x71);
    __asm__ volatile("sti");
    for (int i = 0; i < 200 && rtc_ticks < 10; i++)
        tk_delay_us(1000);
    __asm__ volatile("cli");
    CHECK(rtc_ticks >= 10, "rtc-periodic");
    outb(0x70, 0x8b);
    outb(0x71, 0x02);
}

/* A busy loop must see its registers and flags unchanged by hundreds of interrupts. */
static void stress(void)
{
    uint32_t x = 1, y = 1, start;

    tk_pic_setup(0x20, 0xfffe);
    pit_rate(1193); /* 1 kHz */
    start = ticks;
    __asm__ volatile("sti");
    while (ticks < start + 200) {
        uint32_t n = 1000, a = x, b = y;

        __asm__ volatile("1: imul $1664525, %0, %0; add $1013904223, %0; adc $0, %1; rol $3, %1; dec %2; jnz 1b"
                         : "+r"(a), "+r"(b), "+r"(n) : : "cc");
        __asm__ volatile("cli");
        uint32_t c = x, d = y;
        for (int i = 0; i < 1000; i++) {
            uint64_t sum = (uint64_t)(c * 1664525u) + 1013904223u;

            c = (uint32_t)sum;
            d += (uint32_t)(sum >> 32);
            d = d << 3 | d >> 29;
        }
        __asm__ volatile("sti");
        if (a != c || b != d) {
            CHECK(false, "registers-survive-interrupts");
            return;
        }
        x = a, y = b;
    }
    __asm__ volatile("cli");
    CHECK(true, "registers-survive-interrupts");
    uint64_t t0 = rdtsc();
    tk_delay_us(10000);
    CHECK(rdtsc() > t0, "tsc-moves");
}

void tk_main(void)
{
    pic();
    rtc();
    stress();
}
