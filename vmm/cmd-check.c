/*
 * cmd-check.c - `penstock check`: what this host offers, found out by trying
 *
 * Each finding is a line: good or not, what was seen, what to do. The same findings are the JSON.
 */
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <liburing.h>
#include <linux/capability.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "vmm/cmd.h"
#include "vmm/kvm-probe.h"
#include "vmm/machine.h"
#include "vmm/tool.h"

#define CHECK_EXIT_NO_STOCK_KERNEL 3
#define FINDINGS_MAX               64

typedef enum Verdict {
    VERDICT_OK,
    VERDICT_NOTE, /* works, with less speed or comfort */
    VERDICT_BAD,
} Verdict;

typedef struct Finding {
    Verdict verdict;
    char name[40];
    char detail[160];
    char advice[200];
} Finding;

typedef struct Check {
    Finding findings[FINDINGS_MAX];
    unsigned nb_findings;
    bool kvm, io_uring, stock_kernel;
} Check;

static void add(Check *check, Verdict verdict, const char *name, const char *advice,
                const char *fmt, ...) PRINTF(5, 6);

static void add(Check *check, Verdict verdict, const char *name, const char *advice,
                const char *fmt, ...)
{
    assert(check->nb_findings < FINDINGS_MAX);
    Finding *f = &check->findings[check->nb_findings++];
    va_list ap;

    f->verdict = verdict;
    snprintf(f->name, sizeof(f->name), "%s", name);
    snprintf(f->advice, sizeof(f->advice), "%s", verdict == VERDICT_OK ? "" : advice);
    va_start(ap, fmt);
    vsnprintf(f->detail, sizeof(f->detail), fmt, ap);
    va_end(ap);
}

/* --- KVM --- */

static void check_extensions(Check *check, const Kvm *kvm)
{
    for (unsigned i = 0; i < kvm_nb_extensions; i++) {
        const KvmExtension *ext = &kvm_extensions[i];
        int value = kvm_extension(kvm, ext->cap);
        Verdict missing = ext->required ? VERDICT_BAD : VERDICT_NOTE;

        if (value == 0 && ext->required) {
            check->kvm = false;
        }
        add(check, value ? VERDICT_OK : missing, ext->name, "use a newer host kernel", "%s (%s)",
            value ? "yes" : "no", ext->purpose);
    }
}

static void check_kernel_mode(Check *check, const Kvm *kvm)
{
    KvmProbe probes[KVM_PROBES_MAX];
    Error err;
    int nb = kvm_probe_kernel_mode(kvm, probes, &err);

    if (nb < 0) {
        check->kvm = false;
        add(check, VERDICT_BAD, "throw-away VM", "look at the host's kernel log", "%s", err.msg);
        return;
    }
    check->stock_kernel = true;
    for (int i = 0; i < nb; i++) {
        bool good = kvm_probe_is_good(probes[i].result);
        char name[40];

        snprintf(name, sizeof(name), "kernel mode: %s", probes[i].instruction);
        check->stock_kernel &= good;
        add(check, good ? VERDICT_OK : VERDICT_BAD, name,
            "stock kernels do not boot on this KVM; payloads do, and scripts/boot uses the "
            "testbed",
            "%s", kvm_probe_result_name(probes[i].result));
    }
}

static void check_kvm(Check *check)
{
    Kvm kvm = KVM_INIT;
    Error err;

    if (kvm_open(&kvm, &err) < 0) {
        char *advice = strstr(err.msg, "; "); /* behind the reason */

        if (advice) {
            *advice = '\0';
        }
        add(check, VERDICT_BAD, "/dev/kvm", advice ? advice + 2 : "", "%s", err.msg);
        kvm_close(&kvm);
        return;
    }
    check->kvm = true;
    add(check, VERDICT_OK, "/dev/kvm", "", "API version %d, up to %u vCPUs", KVM_API_VERSION,
        kvm.max_vcpus);
    check_extensions(check, &kvm);
    check_kernel_mode(check, &kvm);
    kvm_close(&kvm);
}

/* --- the event loop --- */

static void check_ring_flag(Check *check, unsigned flags, const char *name, const char *purpose)
{
    struct io_uring ring;
    bool has = io_uring_queue_init(8, &ring, flags) == 0;

    if (has) {
        io_uring_queue_exit(&ring);
    }
    add(check, has ? VERDICT_OK : VERDICT_NOTE, name, "Linux 6.1 or newer has it", "%s (%s)",
        has ? "yes" : "no", purpose);
}

/* What a thread for queues will wait with: by trying. */
static void check_event_loop(Check *check)
{
    AioParams params = { .monitor = AIO_MONITOR_IO_URING };
    Error err;
    AioContext *ctx = aio_context_create("check", &params, &err);

    if (!ctx) {
        add(check, VERDICT_NOTE, "event loop",
            "faster with io_uring: set kernel.io_uring_disabled=0 (sysctl), or let the container's "
            "seccomp profile pass the io_uring calls",
            "epoll, and worker threads for files; io_uring: %s", error_strerror(err.code));
        return;
    }
    aio_context_destroy(ctx);
    check->io_uring = true;
    add(check, VERDICT_OK, "event loop", "", "io_uring");
    check_ring_flag(check, IORING_SETUP_SINGLE_ISSUER, "io_uring SINGLE_ISSUER",
                    "one thread submits");
    check_ring_flag(check, IORING_SETUP_COOP_TASKRUN, "io_uring COOP_TASKRUN",
                    "no interrupt for completions");
    check_ring_flag(check, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
                    "io_uring DEFER_TASKRUN", "completions when asked for");
}

/* --- memory --- */

/* Raised limits do not bind a process that may lock memory anyway. */
static bool may_lock_memory(void)
{
    struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = { 0 };

    return syscall(SYS_capget, &head, data) == 0 &&
           (data[CAP_IPC_LOCK / 32].effective >> (CAP_IPC_LOCK % 32) & 1);
}

static void check_memlock(Check *check)
{
    struct rlimit limit;
    const char *use = "guest RAM as fixed buffers (with --memory ...,prealloc=on)";

    if (may_lock_memory()) {
        add(check, VERDICT_OK, "memory lock limit", "", "none for this user: %s", use);
        return;
    }
    if (getrlimit(RLIMIT_MEMLOCK, &limit) < 0) {
        limit.rlim_cur = 0;
    }
    if (limit.rlim_cur == RLIM_INFINITY) {
        add(check, VERDICT_OK, "memory lock limit", "", "unlimited: %s", use);
        return;
    }
    add(check, VERDICT_NOTE, "memory lock limit",
        "raise it (ulimit -l, LimitMEMLOCK=) above the guest's memory for fixed buffers",
        "%" PRIu64 " KiB: %s only for guests smaller than that", (uint64_t)limit.rlim_cur >> 10,
        use);
}

static void check_hugepages(Check *check)
{
    FILE *f = fopen("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "re");
    unsigned long nb_free = 0;

    if (f) {
        if (fscanf(f, "%lu", &nb_free) != 1) {
            nb_free = 0;
        }
        fclose(f);
    }
    add(check, nb_free ? VERDICT_OK : VERDICT_NOTE, "huge pages",
        "reserve some for --memory ...,hugepages=on: sysctl vm.nr_hugepages=N (2 MiB each)",
        "%lu of 2 MiB are free", nb_free);
}

/* --- what is said --- */

static void print_text(const Check *check)
{
    static const char *const marks[] = { "ok  ", "note", "BAD " };

    for (unsigned i = 0; i < check->nb_findings; i++) {
        const Finding *f = &check->findings[i];

        bool is_last = i + 1 == check->nb_findings || strcmp(f->advice, f[1].advice) != 0;

        printf("%s  %-28s %s\n", marks[f->verdict], f->name, f->detail);
        if (f->advice[0] && is_last) { /* once for all that it is about */
            printf("      %-28s -> %s\n", "", f->advice);
        }
    }
    printf("\n%s\n", !check->kvm       ? "This host cannot run guests with penstock."
                     : check->stock_kernel
                         ? "This host can run stock Linux guests."
                         : "KVM works, but its kernel-mode emulation cannot carry a stock kernel.");
}

static void print_json(const Check *check)
{
    static const char *const verdicts[] = { "ok", "note", "bad" };

    printf("{\"kvm\": %s, \"io_uring\": %s, \"stock_kernel\": %s, \"findings\": [",
           check->kvm ? "true" : "false", check->io_uring ? "true" : "false",
           check->kvm && check->stock_kernel ? "true" : "false");
    for (unsigned i = 0; i < check->nb_findings; i++) {
        const Finding *f = &check->findings[i];

        printf("%s\n  {\"verdict\": \"%s\", \"name\": ", i ? "," : "", verdicts[f->verdict]);
        tool_put_json_string(f->name);
        printf(", \"detail\": ");
        tool_put_json_string(f->detail);
        printf(", \"advice\": ");
        tool_put_json_string(f->advice);
        printf("}");
    }
    printf("]}\n");
}

static const char check_help[] =
    "usage: penstock check [--json]\n"
    "\n"
    "Tries what penstock needs of this host and says what to do about what is missing.\n"
    "\n"
    "  --json    the same findings for a program\n"
    "  --help\n"
    "\n"
    "exit status: 0 this host runs stock Linux guests, 1 it runs none, 2 bad command line,\n"
    "3 KVM works, but its emulation of kernel mode cannot carry a stock kernel\n";

int cmd_check(int argc, char **argv)
{
    bool json = false;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0) {
            json = true;
        } else if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            fputs(check_help, stdout);
            return 0;
        } else {
            cmd_complain("check: '%s' is not an option; see penstock check --help", argv[i]);
            return MACHINE_EXIT_USAGE;
        }
    }
    Check check = { 0 };

    check_kvm(&check);
    check_event_loop(&check);
    check_memlock(&check);
    check_hugepages(&check);
    if (json) {
        print_json(&check);
    } else {
        print_text(&check);
    }
    if (!check.kvm) {
        return MACHINE_EXIT_HOST_FAILURE;
    }
    return check.stock_kernel ? 0 : CHECK_EXIT_NO_STOCK_KERNEL;
}
