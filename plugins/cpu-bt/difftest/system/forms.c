/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/system/forms.c - the instructions: which are made in
 * which modes, and what QEMU does otherwise with them (EXCLUSIONS).
 */
#include "forms.h"

#define F(name_, modes_, fn) {.name = name_, .modes = modes_, .make = fn}
#define RMW(name_, modes_, fn) {.name = name_, .modes = modes_, .make = fn, .rmw = true}
#define PARTIAL RMW /* QEMU has stored half when the other half faults */
#define TASK(name_, modes_, fn) {.name = name_, .modes = modes_, .make = fn, .task = true}
#define EARLY(name_, modes_, fn) {.name = name_, .modes = modes_, .make = fn, .early = true}
#define FAR(name_, modes_, fn) {.name = name_, .modes = modes_, .make = fn, .task = true, .far = true}
struct form forms[] = {
    F("mov sreg", MODES_ALL, f_mov_sreg), F("mov sreg, use", MODES_ALL, f_sreg_use), F("mov from sreg", MODES_ALL, f_mov_from_sreg),
    F("push sreg", MODES_ALL, f_push_sreg), F("pop sreg", MODES_ALL, f_pop_sreg), F("lds les lfs lgs lss", MODES_ALL, f_load_far),
    EARLY("sldt str lldt ltr verr verw", MODES_ALL, f_descriptor_ops), F("lar lsl", MODES_ALL, f_lar_lsl), F("arpl", MODES_NOT64, f_arpl),
    PARTIAL("sgdt sidt smsw", MODES_ALL, f_store_table), EARLY("lgdt lidt", MODES_ALL, f_load_table), EARLY("lmsw", MODES_ALL, f_lmsw),
    EARLY("mov from cr", MODES_ALL, f_mov_from_cr), EARLY("mov to cr", MODES_ALL, f_mov_to_cr), EARLY("mov dr", MODES_ALL, f_mov_dr),
    EARLY("clts invd wbinvd hlt", MODES_ALL, f_clts_etc), EARLY("invlpg", MODES_ALL, f_invlpg), EARLY("rdmsr wrmsr", MODES_ALL, f_msr),
    F("rdfsbase..wrgsbase", MODES_ALL, f_fsgsbase), F("swapgs", MODES_ALL, f_swapgs), F("pushf popf cli sti", MODES_ALL, f_flags),
    EARLY("in out", MODES_ALL, f_in_out), EARLY("ins outs", MODES_ALL, f_ins_outs), FAR("jmp call far", MODES_NOT64, f_far_direct),
    FAR("jmp call far m", MODES_ALL, f_far_memory), {.name = "ret far", .modes = MODES_ALL, .make = f_ret_far, .far = true}, FAR("iret", MODES_ALL, f_iret),
    TASK("int n int3 into", MODES_ALL, f_int), F("bound", MODES_NOT64, f_bound), FAR("task switch", MODES_PROT & ~MODES_LONG64, f_task),
    F("syscall sysret sysenter sysexit", MODES_ALL, f_syscall), F("jmp call ret near", MODES_ALL, f_near_odd),
    F("loop jcxz", MODES_ALL, f_loop), F("mov", MODES_ALL, f_mov), F("mov moffs", MODES_ALL, f_moffs), RMW("alu", MODES_ALL, f_alu),
    RMW("lock", MODES_ALL, f_locked), RMW("bt m, r", MODES_ALL, f_bt_string), RMW("cmpxchg8b 16b", MODES_ALL, f_cmpxchg8b),
    F("strings", MODES_ALL, f_string), F("xlat", MODES_ALL, f_xlat), F("push pop pusha popa", MODES_ALL, f_push_pop),
    F("enter leave", MODES_ALL, f_frame), F("aaa..daa cbw cwd", MODES_ALL, f_adjust), RMW("mul div", MODES_ALL, f_mul_div),
    RMW("shifts", MODES_ALL, f_shift), F("undefined", MODES_ALL, f_undefined), F("too long", MODES_ALL, f_too_long),
    F("mov ss, sti: shadow", MODES_ALL, f_mov_ss_shadow),
};
const unsigned n_forms = sizeof(forms) / sizeof(forms[0]);
