/*
 * vcpu-report.c - in words: why KVM could not go on with a vCPU
 *
 * The report is for a person who sees it once and for a bug report: the exit reason, the registers,
 * the bytes at RIP (read through the guest's own page tables by KVM_TRANSLATE), and what to do.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "vmm/layout.h"
#include "vmm/vcpu-int.h"

#define CODE_BYTES 15 /* the longest x86 instruction */

typedef struct Text {
    char *at;
    size_t left;
} Text;

static void PRINTF(2, 3) append(Text *text, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    int len = vsnprintf(text->at, text->left, fmt, ap);

    va_end(ap);
    if (len > 0) {
        size_t used = MIN((size_t)len, text->left - 1);

        text->at += used;
        text->left -= used;
    }
}

static const uint8_t *guest_byte(Vcpu *vcpu, uint64_t linear)
{
    const GuestImage *image = vcpu->vcpus->image;
    struct kvm_translation tr = { .linear_address = linear };

    if (kvm_ioctl(vcpu->fd, KVM_TRANSLATE, &tr) < 0 || !tr.valid) {
        return NULL;
    }
    if (tr.physical_address < image->low_bytes) {
        return image->hva_low + tr.physical_address;
    }
    if (tr.physical_address >= LAYOUT_RAM_HIGH_GPA &&
        tr.physical_address - LAYOUT_RAM_HIGH_GPA < image->high_bytes) {
        return image->hva_high + (tr.physical_address - LAYOUT_RAM_HIGH_GPA);
    }
    return NULL;
}

static void append_code(Vcpu *vcpu, Text *text, uint64_t linear)
{
    append(text, "\n  code at rip:");
    for (unsigned i = 0; i < CODE_BYTES; i++) {
        const uint8_t *byte = guest_byte(vcpu, linear + i);

        if (!byte) {
            append(text, " (not mapped)");
            return;
        }
        append(text, " %02x", *byte);
    }
}

static void append_registers(Vcpu *vcpu, Text *text)
{
    struct kvm_regs r;
    struct kvm_sregs s;

    if (kvm_ioctl(vcpu->fd, KVM_GET_REGS, &r) < 0 || kvm_ioctl(vcpu->fd, KVM_GET_SREGS, &s) < 0) {
        append(text, "\n  (registers cannot be read)");
        return;
    }
    append(text,
           "\n  rip=%016llx rsp=%016llx rflags=%08llx cpl=%u cs=%04x"
           "\n  rax=%016llx rbx=%016llx rcx=%016llx rdx=%016llx"
           "\n  rsi=%016llx rdi=%016llx rbp=%016llx r8 =%016llx"
           "\n  r9 =%016llx r10=%016llx r11=%016llx r12=%016llx"
           "\n  r13=%016llx r14=%016llx r15=%016llx"
           "\n  cr0=%08llx cr2=%016llx cr3=%016llx cr4=%08llx efer=%08llx",
           r.rip, r.rsp, r.rflags, s.ss.dpl, s.cs.selector, r.rax, r.rbx, r.rcx, r.rdx, r.rsi,
           r.rdi, r.rbp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, s.cr0, s.cr2, s.cr3,
           s.cr4, s.efer);
    append_code(vcpu, text, s.cs.base + r.rip);
}

static const char *suberror_name(uint32_t suberror)
{
    switch (suberror) {
    case KVM_INTERNAL_ERROR_EMULATION:
        return "an instruction that this host's KVM cannot emulate";
    case KVM_INTERNAL_ERROR_SIMUL_EX:
        return "simultaneous exceptions";
    case KVM_INTERNAL_ERROR_DELIVERY_EV:
        return "an exit while an event was being delivered";
    default:
        return "unexpected exit of the processor";
    }
}

static void append_reason(Vcpu *vcpu, Text *text, int run_result)
{
    const struct kvm_run *run = vcpu->run;

    if (run_result < 0) {
        append(text, "KVM_RUN: %s", error_strerror(run_result));
        return;
    }
    switch (run->exit_reason) {
    case KVM_EXIT_INTERNAL_ERROR:
        append(text, "KVM internal error %u: %s", run->internal.suberror,
               suberror_name(run->internal.suberror));
        break;
    case KVM_EXIT_FAIL_ENTRY:
        append(text, "the processor refused to enter the guest, hardware reason 0x%llx",
               (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
        break;
    default:
        append(text, "KVM exit %u, which penstock does not know", run->exit_reason);
        break;
    }
}

void vcpu_report_failure(Vcpu *vcpu, int run_result, char *ret_report, size_t report_bytes)
{
    Text text = { ret_report, report_bytes };

    append(&text, "vcpu%u cannot go on: ", vcpu->index);
    append_reason(vcpu, &text, run_result);
    append_registers(vcpu, &text);
    if (run_result == 0 && vcpu->run->exit_reason == KVM_EXIT_INTERNAL_ERROR &&
        vcpu->run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION) {
        append(&text, "\n  hint: this host's KVM runs kernel-mode code in an emulator that lacks "
                      "the instruction above; `penstock check` tells what it can carry");
    }
}
