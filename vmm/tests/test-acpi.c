/*
 * ACPI tables: what a guest's parser follows, bytes that the specification fixes, and ACPICA's own
 * compiler reading all of it.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "io/base/test.h"
#include "vmm/acpi.h"
#include "vmm/aml.h"
#include "vmm/layout.h"

#define IMAGE_BYTES (2u << 20)

static GuestImage image;

static void setup_image(void)
{
    image.hva_low =
        mmap(NULL, IMAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_TRUE(image.hva_low != MAP_FAILED);
    image.low_bytes = IMAGE_BYTES;
}

static uint64_t get(const uint8_t *at, unsigned len_bytes)
{
    uint64_t value = 0;

    memcpy(&value, at, len_bytes);
    return value;
}

static uint8_t sum(const uint8_t *at, size_t len_bytes)
{
    uint8_t total = 0;

    while (len_bytes--) {
        total += *at++;
    }
    return total;
}

static const uint8_t *at_gpa(uint64_t gpa, size_t len_bytes)
{
    ASSERT_GE(gpa, LAYOUT_ACPI_GPA);
    ASSERT_LE(gpa + len_bytes, LAYOUT_ACPI_GPA + LAYOUT_ACPI_BYTES);
    return image.hva_low + gpa;
}

static uint32_t table_len(const uint8_t *table)
{
    return (uint32_t)get(table + 4, 4);
}

/* The table that the XSDT lists under @signature; its checksum has been tried. */
static const uint8_t *find_table(uint64_t rsdp_gpa, const char *signature)
{
    uint64_t xsdt_gpa = get(at_gpa(rsdp_gpa, 36) + 24, 8);
    const uint8_t *xsdt = at_gpa(xsdt_gpa, 36);

    for (uint32_t at = 36; at < table_len(xsdt); at += 8) {
        const uint8_t *table = at_gpa(get(xsdt + at, 8), 36);

        if (memcmp(table, signature, 4) == 0) {
            at_gpa(get(xsdt + at, 8), table_len(table));
            EXPECT_EQ(sum(table, table_len(table)), 0);
            return table;
        }
    }
    test_fail_abort(__FILE__, __LINE__, "no table %s", signature);
}

static const uint8_t *find_dsdt(uint64_t rsdp_gpa)
{
    return at_gpa(get(find_table(rsdp_gpa, "FACP") + 140, 8), 36);
}

static AcpiMmioDevice mmio_devices[LAYOUT_VIRTIO_MMIO_MAX];

/* The machine with everything in it. */
static void full_params(AcpiParams *params)
{
    acpi_params_init(params, ACPI_MAX_CPUS);
    params->mmio64_gpa = 1ull << 39;
    params->mmio64_bytes = 1ull << 39;
    for (unsigned i = 0; i < LAYOUT_VIRTIO_MMIO_MAX; i++) {
        mmio_devices[i].gpa = (uint32_t)layout_virtio_mmio_gpa(i);
        mmio_devices[i].window_bytes = LAYOUT_VIRTIO_MMIO_BYTES;
        mmio_devices[i].gsi = layout_virtio_mmio_gsi(i);
    }
    params->mmio_devices = mmio_devices;
    params->nb_mmio_devices = LAYOUT_VIRTIO_MMIO_MAX;
}

static uint64_t build(const AcpiParams *params)
{
    uint64_t rsdp_gpa = 0;
    Error err;

    setup_image();
    ASSERT_EQ(acpi_build(params, &image, &rsdp_gpa, &err), 0);
    return rsdp_gpa;
}

TEST(acpi, every_table_is_reachable_and_sums_to_zero)
{
    AcpiParams params;
    uint64_t rsdp_gpa;
    const uint8_t *rsdp, *xsdt, *fadt, *facs, *dsdt;

    full_params(&params);
    rsdp_gpa = build(&params);
    EXPECT_EQ(rsdp_gpa, LAYOUT_ACPI_GPA);
    rsdp = at_gpa(rsdp_gpa, 36);
    EXPECT_EQ(memcmp(rsdp, "RSD PTR ", 8), 0);
    EXPECT_EQ(sum(rsdp, 20), 0);
    EXPECT_EQ(sum(rsdp, 36), 0);
    EXPECT_EQ(rsdp[15], 2);
    EXPECT_EQ(get(rsdp + 20, 4), 36);

    xsdt = at_gpa(get(rsdp + 24, 8), 36);
    EXPECT_EQ(memcmp(xsdt, "XSDT", 4), 0);
    EXPECT_EQ(sum(xsdt, table_len(xsdt)), 0);
    EXPECT_EQ(table_len(xsdt), 36 + 3 * 8);

    fadt = find_table(rsdp_gpa, "FACP");
    facs = at_gpa(get(fadt + 36, 4), 64);
    EXPECT_EQ(memcmp(facs, "FACS", 4), 0);
    EXPECT_EQ(get(fadt + 36, 4) % 64, 0);
    EXPECT_EQ(get(fadt + 40, 4), get(fadt + 140, 8));
    dsdt = find_dsdt(rsdp_gpa);
    EXPECT_EQ(memcmp(dsdt, "DSDT", 4), 0);
    EXPECT_EQ(sum(dsdt, table_len(dsdt)), 0);
    find_table(rsdp_gpa, "APIC");
    find_table(rsdp_gpa, "MCFG");
}

TEST(acpi, fadt_names_the_ports_of_the_layout)
{
    AcpiParams params;
    const uint8_t *fadt;

    acpi_params_init(&params, 1);
    fadt = find_table(build(&params), "FACP");
    EXPECT_EQ(table_len(fadt), 276);
    EXPECT_EQ(get(fadt + 46, 2), LAYOUT_SCI_GSI);
    EXPECT_EQ(get(fadt + 48, 4), 0); /* SMI_CMD: none, so always in ACPI mode */
    EXPECT_EQ(get(fadt + 56, 4), LAYOUT_PM1_EVT_PORT);
    EXPECT_EQ(get(fadt + 64, 4), LAYOUT_PM1_CNT_PORT);
    EXPECT_EQ(get(fadt + 76, 4), LAYOUT_PM_TMR_PORT);
    EXPECT_EQ(fadt[88], 4);
    EXPECT_EQ(fadt[89], 2);
    EXPECT_EQ(fadt[91], 4);
    EXPECT_TRUE(get(fadt + 112, 4) & 1u << 10);  /* RESET_REG_SUP */
    EXPECT_FALSE(get(fadt + 112, 4) & 1u << 4);  /* a fixed power button */
    EXPECT_TRUE(get(fadt + 112, 4) & 1u << 5);   /* but no sleep button */
    EXPECT_FALSE(get(fadt + 112, 4) & 1u << 20); /* not hardware-reduced */
    EXPECT_EQ(fadt[116], 1);                     /* reset register in I/O space */
    EXPECT_EQ(get(fadt + 120, 8), LAYOUT_RESET_PORT);
    EXPECT_EQ(fadt[128], LAYOUT_RESET_VALUE);
    EXPECT_EQ(get(fadt + 148 + 4, 8), LAYOUT_PM1_EVT_PORT);
    EXPECT_EQ(get(fadt + 172 + 4, 8), LAYOUT_PM1_CNT_PORT);
    EXPECT_EQ(get(fadt + 208 + 4, 8), LAYOUT_PM_TMR_PORT);
}

/* Counts the entries of one type in the MADT and gives the last of them. */
static unsigned count_madt(const uint8_t *madt, uint8_t type, const uint8_t **ret_last)
{
    unsigned n = 0;
    uint32_t at = 44;

    *ret_last = madt;
    while (at < table_len(madt)) {
        ASSERT_GE(madt[at + 1], 2);
        ASSERT_LE(at + madt[at + 1], table_len(madt));
        if (madt[at] == type) {
            *ret_last = madt + at;
            n++;
        }
        at += madt[at + 1];
    }
    EXPECT_EQ(at, table_len(madt));
    return n;
}

TEST(acpi, madt_lists_every_cpu_and_the_overrides)
{
    for (unsigned nb_cpus = 1; nb_cpus <= ACPI_MAX_CPUS; nb_cpus++) {
        const uint8_t *madt, *entry = NULL;
        AcpiParams params;

        acpi_params_init(&params, nb_cpus);
        madt = find_table(build(&params), "APIC");
        EXPECT_EQ(get(madt + 36, 4), LAYOUT_LAPIC_GPA);
        EXPECT_EQ(count_madt(madt, 0, &entry), nb_cpus);
        EXPECT_EQ(entry[2], nb_cpus - 1);
        EXPECT_EQ(entry[3], nb_cpus - 1);
        EXPECT_EQ(get(entry + 4, 4), 1);
        EXPECT_EQ(count_madt(madt, 1, &entry), 1);
        EXPECT_EQ(get(entry + 4, 4), LAYOUT_IOAPIC_GPA);
        EXPECT_EQ(count_madt(madt, 2, &entry), 2);
        EXPECT_EQ(entry[3 - 10], 0); /* the one before: IRQ 0 to GSI 2 as the bus has it */
        EXPECT_EQ(get(entry + 4 - 10, 4), 2);
        EXPECT_EQ(get(entry + 8 - 10, 2), 0);
        EXPECT_EQ(entry[3], LAYOUT_SCI_GSI);
        EXPECT_EQ(get(entry + 4, 4), LAYOUT_SCI_GSI);
        EXPECT_EQ(get(entry + 8, 2), 0xd); /* level, active high */
        EXPECT_EQ(count_madt(madt, 4, &entry), 1);
    }
}

TEST(acpi, mcfg_covers_the_buses_of_the_ecam)
{
    AcpiParams params;
    const uint8_t *mcfg;

    acpi_params_init(&params, 1);
    mcfg = find_table(build(&params), "MCFG");
    EXPECT_EQ(table_len(mcfg), 60);
    EXPECT_EQ(get(mcfg + 44, 8), LAYOUT_ECAM_GPA);
    EXPECT_EQ(mcfg[54], 0);
    EXPECT_EQ(mcfg[55], 255);

    params.ecam_bytes = 1u << 20;
    mcfg = find_table(build(&params), "MCFG");
    EXPECT_EQ(mcfg[55], 0);
}

static bool contains(const uint8_t *table, const void *needle, size_t len_bytes)
{
    return memmem(table, table_len(table), needle, len_bytes) != NULL;
}

TEST(acpi, dsdt_holds_only_the_devices_that_are_there)
{
    AcpiParams params;
    const uint8_t *dsdt;

    acpi_params_init(&params, 2);
    dsdt = find_dsdt(build(&params));
    EXPECT_TRUE(contains(dsdt, "C001", 4));
    EXPECT_FALSE(contains(dsdt, "C002", 4));
    EXPECT_FALSE(contains(dsdt, "LNRO0005", 8));
    EXPECT_TRUE(contains(dsdt, "\x41\xd0\x05\x01", 4)); /* PNP0501 */
    EXPECT_TRUE(contains(dsdt, "QEMU0001", 8));

    full_params(&params);
    dsdt = find_dsdt(build(&params));
    EXPECT_TRUE(contains(dsdt, "C03F", 4));
    EXPECT_TRUE(contains(dsdt, "LNRO0005", 8));
    EXPECT_TRUE(contains(dsdt, "VR0B", 4));
}

/* An AML integer, for the small values of a routing table. */
static size_t put_integer(uint8_t *at, uint32_t value)
{
    unsigned len = value <= 1 ? 0 : value <= 0xff ? 1 : value <= 0xffff ? 2 : 4;

    at[0] = value <= 1 ? value : len == 1 ? 0x0a : len == 2 ? 0x0b : 0x0c;
    memcpy(at + 1, &value, len);
    return 1 + len;
}

TEST(acpi, pci_routing_follows_the_formula_of_the_layout)
{
    AcpiParams params;
    const uint8_t *dsdt;

    acpi_params_init(&params, 1);
    dsdt = find_dsdt(build(&params));
    for (uint32_t slot = 0; slot < LAYOUT_PCI_SLOTS; slot++) {
        for (uint32_t pin = 0; pin < 4; pin++) {
            uint8_t entry[32] = { 0x12, 0, 4 };
            size_t len = 3;

            len += put_integer(entry + len, slot << 16 | 0xffff);
            len += put_integer(entry + len, pin);
            len += put_integer(entry + len, 0);
            len += put_integer(entry + len, layout_pci_gsi(slot, pin));
            entry[1] = (uint8_t)(len - 1);
            EXPECT_TRUE(contains(dsdt, entry, len));
        }
    }
}

TEST(acpi, parameters_out_of_range_are_refused)
{
    AcpiParams good, params;
    uint64_t rsdp_gpa = 77;
    Error err;

    setup_image();
    acpi_params_init(&good, 1);
    params = good;
    params.nb_cpus = 0;
    EXPECT_EQ(acpi_build(&params, &image, &rsdp_gpa, &err), -EINVAL);
    params.nb_cpus = ACPI_MAX_CPUS + 1;
    EXPECT_EQ(acpi_build(&params, &image, &rsdp_gpa, &err), -EINVAL);
    params = good;
    params.ecam_bytes = 512u << 20;
    EXPECT_EQ(acpi_build(&params, &image, &rsdp_gpa, &err), -EINVAL);
    params = good;
    params.ecam_gpa = 0xf8000000;
    EXPECT_EQ(acpi_build(&params, &image, &rsdp_gpa, &err), -EINVAL);
    params = good;
    params.mmio32_bytes = 0;
    EXPECT_EQ(acpi_build(&params, &image, &rsdp_gpa, &err), -EINVAL);
    params = good;
    params.mmio64_gpa = UINT64_MAX - 10;
    params.mmio64_bytes = 100;
    EXPECT_EQ(acpi_build(&params, &image, &rsdp_gpa, &err), -EINVAL);
    params = good;
    params.nb_mmio_devices = LAYOUT_VIRTIO_MMIO_MAX + 1;
    EXPECT_EQ(acpi_build(&params, &image, &rsdp_gpa, &err), -EINVAL);
    image.low_bytes = LAYOUT_ACPI_GPA + 100;
    EXPECT_EQ(acpi_build(&good, &image, &rsdp_gpa, &err), -ENOSPC);
    EXPECT_EQ(rsdp_gpa, 77);
}

TEST(layout, interrupts_of_pci_and_virtio_mmio_never_meet)
{
    uint32_t taken = 1u << 0 | 1u << 1 | 1u << 2 | 1u << LAYOUT_COM1_GSI | 1u << 8 |
                     1u << LAYOUT_SCI_GSI | 1u << 13;
    uint32_t pci = 0;

    for (uint32_t slot = 0; slot < LAYOUT_PCI_SLOTS; slot++) {
        for (uint32_t pin = 0; pin < 4; pin++) {
            pci |= 1u << layout_pci_gsi(slot, pin);
        }
    }
    EXPECT_EQ(pci, 0xf0000);
    taken |= pci;
    for (unsigned i = 0; i < LAYOUT_VIRTIO_MMIO_MAX; i++) {
        uint32_t gsi = layout_virtio_mmio_gsi(i);

        EXPECT_LT(gsi, LAYOUT_NB_GSIS);
        EXPECT_FALSE(taken & 1u << gsi);
        taken |= 1u << gsi;
    }
}

TEST(layout, window_for_64_bit_bars_is_above_ram_or_absent)
{
    uint64_t gpa = 1, len = 1;

    EXPECT_TRUE(layout_mmio64_window(4ull << 30, 40, &gpa, &len));
    EXPECT_EQ(gpa, 1ull << 39);
    EXPECT_EQ(len, 1ull << 39);
    EXPECT_TRUE(layout_mmio64_window((1ull << 39) - (4ull << 30), 40, &gpa, &len));
    EXPECT_FALSE(layout_mmio64_window((1ull << 39) - (4ull << 30) + 1, 40, &gpa, &len));
    EXPECT_EQ(len, 0);
    EXPECT_FALSE(layout_mmio64_window(0, 32, &gpa, &len));
    EXPECT_FALSE(layout_mmio64_window(0, 33, &gpa, &len));
    EXPECT_TRUE(layout_mmio64_window(0, 34, &gpa, &len));
}

TEST(aml, package_lengths_are_in_the_shortest_form)
{
    static const struct {
        size_t filler;
        size_t length_bytes;
        uint8_t bytes[3];
    } cases[] = {
        /* the length counts itself, the element count and the filler */
        { 0, 1, { 0x02 } },
        { 61, 1, { 0x3f } },
        { 62, 2, { 0x41, 0x04 } },
        { 0xffc, 2, { 0x4f, 0xff } },
        { 0xffd, 3, { 0x81, 0x00, 0x01 } },
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        uint8_t buf[5000];
        Aml aml;

        aml_init(&aml, buf, sizeof(buf));
        aml_begin_package(&aml, 0);
        for (size_t n = 0; n < cases[i].filler; n++) {
            aml_integer(&aml, 1);
        }
        aml_end(&aml);
        ASSERT_FALSE(aml_overflowed(&aml));
        EXPECT_EQ(aml.len_bytes, 1 + cases[i].length_bytes + 1 + cases[i].filler);
        EXPECT_EQ(memcmp(buf + 1, cases[i].bytes, cases[i].length_bytes), 0);
    }
}

TEST(aml, full_buffer_is_reported_and_never_overrun)
{
    uint8_t reference[256];
    Aml whole;

    aml_init(&whole, reference, sizeof(reference));
    for (size_t capacity = 0;; capacity++) {
        uint8_t *buf = malloc(capacity + 1);
        Aml aml;

        ASSERT_LT(capacity, sizeof(reference));
        buf[capacity] = 0xa5;
        aml_init(&aml, buf, capacity);
        aml_begin_scope(&aml, "\\_SB_");
        aml_begin_device(&aml, "DEV0");
        aml_name(&aml, "_CRS");
        aml_begin_resources(&aml);
        aml_memory64_window(&aml, 1ull << 40, 1ull << 30);
        aml_end(&aml);
        aml_name(&aml, "_STR");
        aml_string(&aml, "twelve chars");
        aml_end(&aml);
        aml_end(&aml);
        EXPECT_EQ(buf[capacity], 0xa5);
        EXPECT_LE(aml.len_bytes, capacity);
        bool overflowed = aml_overflowed(&aml);

        free(buf);
        if (!overflowed) {
            EXPECT_EQ(capacity, aml.len_bytes);
            EXPECT_GT(capacity, 60);
            break;
        }
    }
}

/* --- ACPICA's compiler --- */

/* Runs @argv in @dir with its output in a file there; the exit status. */
static int run_in(const char *dir, const char *output, const char *const argv[])
{
    int status = -1;
    pid_t pid = fork();

    ASSERT_GE(pid, 0);
    if (pid == 0) {
        if (chdir(dir) < 0) {
            _exit(126);
        }
        int fd = open(output, O_WRONLY | O_CREAT | O_TRUNC, 0600);

        dup2(fd, 1);
        dup2(fd, 2);
        execvp(argv[0], (char *const *)argv);
        _exit(127);
    }
    ASSERT_EQ(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void write_table(const char *dir, const char *name, const uint8_t *table, size_t len_bytes)
{
    char path[300];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s.aml", dir, name);
    file = fopen(path, "w");
    ASSERT_TRUE(file != NULL);
    ASSERT_EQ(fwrite(table, 1, len_bytes, file), len_bytes);
    ASSERT_EQ(fclose(file), 0);
}

static char *read_text(const char *dir, const char *name)
{
    static char text[200000];
    char path[300];
    FILE *file;
    size_t n;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    file = fopen(path, "r");
    ASSERT_TRUE(file != NULL);
    n = fread(text, 1, sizeof(text) - 1, file);
    text[n] = '\0';
    fclose(file);
    return text;
}

/* Disassembles and compiles again: both without a complaint, and to the same bytes. */
static void check_with_iasl(const char *dir, const char *name, const uint8_t *table,
                            size_t len_bytes)
{
    char aml[64], dsl[64], prefix[64];
    const char *disassemble[] = { "iasl", "-d", aml, NULL };
    const char *compile[] = { "iasl", "-tc", "-we", "-on", "-p", prefix, dsl, NULL };
    const char *text;

    snprintf(aml, sizeof(aml), "%s.aml", name);
    snprintf(dsl, sizeof(dsl), "%s.dsl", name);
    snprintf(prefix, sizeof(prefix), "%s-again", name);
    write_table(dir, name, table, len_bytes);

    ASSERT_EQ(run_in(dir, "log", disassemble), 0);
    text = read_text(dir, "log");
    EXPECT_TRUE(strstr(text, "Could not") == NULL && strstr(text, "rror") == NULL &&
                strstr(text, "arning") == NULL && strstr(text, "ncorrect") == NULL);
    text = read_text(dir, dsl);
    EXPECT_TRUE(strstr(text, "ERROR") == NULL && strstr(text, "Incorrect") == NULL);

    EXPECT_EQ(run_in(dir, "log", compile), 0);
    text = read_text(dir, "log");
    if (strstr(text, "ompilation successful. 0 Errors, 0 Warnings") == NULL) {
        test_fail(__FILE__, __LINE__, "%s: iasl says: %s", name, text);
    }
    snprintf(aml, sizeof(aml), "%s-again.aml", name);
    if (strcmp(name, "dsdt") == 0) {
        /* the header names the compiler; the code has to be the same */
        EXPECT_EQ(memcmp(read_text(dir, aml) + 36, table + 36, len_bytes - 36), 0);
    }
}

/* Every resource template is one to ACPICA, too, with what belongs in it. */
static void check_dsdt_text(const char *text, const AcpiParams *params)
{
    static const char *const always[] = {
        "EisaId (\"PNP0A08\")",
        "WordBusNumber (ResourceProducer",
        "WordIO (ResourceProducer",
        "DWordMemory (ResourceProducer",
        "_PRT, Package (0x80)",
        "EisaId (\"PNP0C02\")",
        "EisaId (\"PNP0501\")",
        "EisaId (\"PNP0B00\")",
        "\"QEMU0001\"",
        "\"ACPI0007\"",
        "Memory32Fixed (ReadWrite,",
        "0x03F8,",
        "0x0505,",
        "IRQNoFlags ()",
        "Name (\\_S5, Package (0x04)",
    };
    static const char *const full_only[] = {
        "QWordMemory (ResourceProducer",
        "\"LNRO0005\"",
        "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive",
    };

    for (size_t i = 0; i < ARRAY_SIZE(always); i++) {
        if (!strstr(text, always[i])) {
            test_fail(__FILE__, __LINE__, "no %s in the DSDT", always[i]);
        }
    }
    for (size_t i = 0; i < ARRAY_SIZE(full_only); i++) {
        if (!strstr(text, full_only[i]) != !params->nb_mmio_devices) {
            test_fail(__FILE__, __LINE__, "%s in the DSDT, or not", full_only[i]);
        }
    }
    EXPECT_TRUE(strstr(text, "Buffer (") == NULL);
}

/* All but the RSDP: this iasl does not take even its own one apart. */
static void check_all_with_iasl(const AcpiParams *params)
{
    char dir[] = "/tmp/penstock-acpi-XXXXXX";
    const char *version[] = { "iasl", "-v", NULL };
    const char *clean[] = { "rm", "-rf", dir, NULL };
    static const char *const signatures[] = { "FACP", "APIC", "MCFG" };
    uint64_t rsdp_gpa = build(params);
    const uint8_t *rsdp = at_gpa(rsdp_gpa, 36), *dsdt = find_dsdt(rsdp_gpa);
    const uint8_t *xsdt = at_gpa(get(rsdp + 24, 8), 36);
    const uint8_t *facs = at_gpa(get(find_table(rsdp_gpa, "FACP") + 36, 4), 64);

    ASSERT_TRUE(mkdtemp(dir) != NULL);
    if (run_in(dir, "log", version) != 0) {
        run_in("/", "/dev/null", clean);
        TEST_SKIP("needs iasl (acpica-tools)");
    }
    for (size_t i = 0; i < ARRAY_SIZE(signatures); i++) {
        const uint8_t *table = find_table(rsdp_gpa, signatures[i]);

        check_with_iasl(dir, signatures[i], table, table_len(table));
    }
    check_with_iasl(dir, "dsdt", dsdt, table_len(dsdt));
    check_dsdt_text(read_text(dir, "dsdt.dsl"), params);
    check_with_iasl(dir, "facs", facs, 64);
    check_with_iasl(dir, "xsdt", xsdt, table_len(xsdt));
    run_in("/", "/dev/null", clean);
}

TEST(iasl, reads_and_compiles_the_tables_of_the_smallest_machine)
{
    AcpiParams params;

    acpi_params_init(&params, 1);
    check_all_with_iasl(&params);
}

TEST(iasl, reads_and_compiles_the_tables_of_the_fullest_machine)
{
    AcpiParams params;

    full_params(&params);
    check_all_with_iasl(&params);
}

TEST_MAIN()
