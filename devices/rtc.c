/*
 * rtc.c - MC146818 time of day from the host's clock, and battery-backed bytes
 *
 * 1. While the clock runs the time is the host's plus offset_s; the time registers are made of it
 * at
 *    each read. While register B's SET bit is on they are what was latched when it was set,
 *    as changed by the guest; clearing it computes offset_s from them.
 * 2. Format (binary or BCD, 12 or 24 hours) is applied at the access by register B as it is then;
 *    the latched time is stored as the guest wrote it.
 * 3. No interrupt is raised. Register C shows that an update happened since it was read last; the
 *    alarm registers and enable bits keep what is written.
 * 4. Any bytes make some time: fields are reduced to their range, timegm() does the rest.
 */
#include "devices/legacy.h"

#include <pthread.h>
#include <time.h>

#define RTC_PORT      0x70
#define RTC_BYTES     128
#define NS_PER_S      1000000000
#define UIP_NS        244000 /* update in progress: the end of each second */
#define REG_A_UIP     0x80
#define REG_A_DIVIDER 0x26 /* 32768 Hz, 1024 Hz periodic rate */
#define REG_B_24H     0x02
#define REG_B_BINARY  0x04
#define REG_B_SET     0x80
#define REG_C_UPDATED 0x10
#define REG_D_VALID   0x80
#define HOURS_PM      0x80

enum {
    RTC_SECONDS = 0x00,
    RTC_MINUTES = 0x02,
    RTC_HOURS = 0x04,
    RTC_DAY_OF_WEEK = 0x06,
    RTC_DAY_OF_MONTH = 0x07,
    RTC_MONTH = 0x08,
    RTC_YEAR = 0x09,
    RTC_REG_A = 0x0a,
    RTC_REG_B = 0x0b,
    RTC_REG_C = 0x0c,
    RTC_REG_D = 0x0d,
    RTC_CENTURY = 0x32,
};

struct Rtc {
    pthread_mutex_t lock; /* protects the fields down to last_update_s */
    uint8_t index;
    uint8_t bytes[RTC_BYTES]; /* time registers: valid while SET is on */
    int64_t offset_s;
    int64_t last_update_s; /* second in which register C was read last */

    Platform *platform;
    bool on_bus;
};

/* --- formats --- */

static uint8_t encode(const Rtc *rtc, unsigned value)
{
    return rtc->bytes[RTC_REG_B] & REG_B_BINARY ? (uint8_t)value
                                                : (uint8_t)(value / 10 << 4 | value % 10);
}

static unsigned decode(const Rtc *rtc, uint8_t byte)
{
    return rtc->bytes[RTC_REG_B] & REG_B_BINARY ? byte : (byte >> 4) * 10u + (byte & 0xf);
}

static uint8_t encode_hours(const Rtc *rtc, unsigned hours)
{
    if (rtc->bytes[RTC_REG_B] & REG_B_24H) {
        return encode(rtc, hours);
    }
    return encode(rtc, hours % 12 ? hours % 12 : 12) | (hours >= 12 ? HOURS_PM : 0);
}

static unsigned decode_hours(const Rtc *rtc, uint8_t byte)
{
    if (rtc->bytes[RTC_REG_B] & REG_B_24H) {
        return decode(rtc, byte) % 24;
    }
    return decode(rtc, byte & (uint8_t)~HOURS_PM) % 12 + (byte & HOURS_PM ? 12 : 0);
}

/* --- time --- */

static struct timespec host_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return now;
}

static bool is_time_register(unsigned reg)
{
    return reg == RTC_SECONDS || reg == RTC_MINUTES || reg == RTC_HOURS ||
           (reg >= RTC_DAY_OF_WEEK && reg <= RTC_YEAR) || reg == RTC_CENTURY;
}

/* The time registers become the time now. */
static void latch(Rtc *rtc)
{
    time_t now_s = host_now().tv_sec + rtc->offset_s;
    struct tm tm;

    gmtime_r(&now_s, &tm);
    rtc->bytes[RTC_SECONDS] = encode(rtc, MIN(tm.tm_sec, 59));
    rtc->bytes[RTC_MINUTES] = encode(rtc, tm.tm_min);
    rtc->bytes[RTC_HOURS] = encode_hours(rtc, tm.tm_hour);
    rtc->bytes[RTC_DAY_OF_WEEK] = encode(rtc, tm.tm_wday + 1);
    rtc->bytes[RTC_DAY_OF_MONTH] = encode(rtc, tm.tm_mday);
    rtc->bytes[RTC_MONTH] = encode(rtc, tm.tm_mon + 1);
    rtc->bytes[RTC_YEAR] = encode(rtc, (tm.tm_year + 1900) % 100);
    rtc->bytes[RTC_CENTURY] = encode(rtc, (tm.tm_year + 1900) / 100);
}

/* The clock goes on from the time registers. */
static void commit(Rtc *rtc)
{
    unsigned year = decode(rtc, rtc->bytes[RTC_CENTURY]) % 100 * 100 +
                    decode(rtc, rtc->bytes[RTC_YEAR]) % 100;
    struct tm tm = {
        .tm_sec = (int)decode(rtc, rtc->bytes[RTC_SECONDS]) % 60,
        .tm_min = (int)decode(rtc, rtc->bytes[RTC_MINUTES]) % 60,
        .tm_hour = (int)decode_hours(rtc, rtc->bytes[RTC_HOURS]),
        .tm_mday = (int)decode(rtc, rtc->bytes[RTC_DAY_OF_MONTH]),
        .tm_mon = (int)decode(rtc, rtc->bytes[RTC_MONTH]) - 1,
        .tm_year = (int)year - 1900,
    };

    rtc->offset_s = timegm(&tm) - host_now().tv_sec;
}

static bool clock_is_set(const Rtc *rtc)
{
    return rtc->bytes[RTC_REG_B] & REG_B_SET;
}

/* --- registers; locked --- */

static uint8_t read_reg_a(const Rtc *rtc)
{
    bool updating = !clock_is_set(rtc) && host_now().tv_nsec >= NS_PER_S - UIP_NS;

    return rtc->bytes[RTC_REG_A] | (updating ? REG_A_UIP : 0);
}

static uint8_t read_reg_c(Rtc *rtc)
{
    int64_t now_s = host_now().tv_sec;
    bool updated = !clock_is_set(rtc) && now_s != rtc->last_update_s;

    rtc->last_update_s = now_s;
    return updated ? REG_C_UPDATED : 0;
}

static uint8_t read_register(Rtc *rtc, unsigned reg)
{
    switch (reg) {
    case RTC_REG_A:
        return read_reg_a(rtc);
    case RTC_REG_C:
        return read_reg_c(rtc);
    case RTC_REG_D:
        return REG_D_VALID;
    default:
        if (is_time_register(reg) && !clock_is_set(rtc)) {
            latch(rtc);
        }
        return rtc->bytes[reg];
    }
}

static void write_reg_b(Rtc *rtc, uint8_t value)
{
    bool was_set = clock_is_set(rtc);

    if (!was_set) {
        rtc->bytes[RTC_REG_B] = value & (uint8_t)~REG_B_SET;
        latch(rtc);
    }
    rtc->bytes[RTC_REG_B] = value;
    if (was_set && !clock_is_set(rtc)) {
        commit(rtc);
    }
}

static void write_register(Rtc *rtc, unsigned reg, uint8_t value)
{
    switch (reg) {
    case RTC_REG_A:
        rtc->bytes[reg] = value & (uint8_t)~REG_A_UIP;
        break;
    case RTC_REG_B:
        write_reg_b(rtc, value);
        break;
    case RTC_REG_C:
    case RTC_REG_D:
        break;
    default:
        if (!is_time_register(reg) || clock_is_set(rtc)) {
            rtc->bytes[reg] = value;
        } else {
            latch(rtc);
            rtc->bytes[reg] = value;
            commit(rtc);
        }
        break;
    }
}

/* --- bus: each byte of an access is one to the port it falls on --- */

static uint64_t rtc_read(void *opaque, uint64_t offset, unsigned len_bytes)
{
    Rtc *rtc = opaque;
    uint64_t value = 0;

    pthread_mutex_lock(&rtc->lock);
    for (unsigned i = 0; i < len_bytes; i++) {
        uint8_t byte = offset + i == 0 ? 0xff : read_register(rtc, rtc->index);

        value |= (uint64_t)byte << 8 * i;
    }
    pthread_mutex_unlock(&rtc->lock);
    return value;
}

static void rtc_write(void *opaque, uint64_t offset, unsigned len_bytes, uint64_t value)
{
    Rtc *rtc = opaque;

    pthread_mutex_lock(&rtc->lock);
    for (unsigned i = 0; i < len_bytes; i++) {
        uint8_t byte = (uint8_t)(value >> 8 * i);

        if (offset + i == 0) {
            rtc->index = byte % RTC_BYTES; /* the top bit masks NMIs */
        } else {
            write_register(rtc, rtc->index, byte);
        }
    }
    pthread_mutex_unlock(&rtc->lock);
}

static const BusOps rtc_ops = { .read = rtc_read, .write = rtc_write };

Rtc *rtc_create(Platform *platform, Error *err)
{
    Rtc *rtc = calloc(1, sizeof(*rtc));
    BusRange range = { .base = RTC_PORT, .len_bytes = 2, .ops = &rtc_ops, .opaque = rtc,
                       .name = "rtc" };

    if (!rtc) {
        error_set(err, -ENOMEM, "no memory for the RTC");
        return NULL;
    }
    pthread_mutex_init(&rtc->lock, NULL);
    rtc->platform = platform;
    rtc->bytes[RTC_REG_A] = REG_A_DIVIDER;
    rtc->bytes[RTC_REG_B] = REG_B_24H;
    rtc->last_update_s = host_now().tv_sec;
    if (bus_add(platform->pio, &range, err) < 0) {
        rtc_destroy(rtc);
        return NULL;
    }
    rtc->on_bus = true;
    return rtc;
}

void rtc_destroy(Rtc *rtc)
{
    if (!rtc) {
        return;
    }
    if (rtc->on_bus) {
        bus_remove(rtc->platform->pio, RTC_PORT);
    }
    pthread_mutex_destroy(&rtc->lock);
    free(rtc);
}
