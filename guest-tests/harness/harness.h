/*
 * harness.h - tests that register themselves, in the manner of the kernel's kselftest_harness
 *
 * Layer:     guest-tests/harness (freestanding; includes nothing of penstock). Payloads include it
 *            as it is, the unit tests of the C layers through io/base/test.h.
 * Threading: tests run one after the other; any thread or process of a test may fail it.
 * Lifetime:  tests, fixtures and variants are static and put on lists by constructors.
 *
 *     TEST(vring, a_chain_that_loops_breaks_the_device)
 *     {
 *         ASSERT_EQ(pop(...), -EPIPE);
 *     }
 *
 * or with something to set up, once for each test and variant:
 *
 *     FIXTURE(ring) { Ring *ring; };
 *     FIXTURE_VARIANT(ring) { bool packed; };
 *     FIXTURE_VARIANT_ADD(ring, split) { .packed = false };
 *     FIXTURE_VARIANT_ADD(ring, packed) { .packed = true };
 *     FIXTURE_SETUP(ring) { self->ring = ring_create(variant->packed); }
 *     FIXTURE_TEARDOWN(ring) { ring_destroy(self->ring); }
 *     TEST_F(ring, an_empty_ring_gives_nothing) { EXPECT_EQ(ring_pop(self->ring), 0); }
 *
 * which are two tests, "ring.split: an_empty_ring_gives_nothing" and the same of "ring.packed". A
 * fixture without variants (no FIXTURE_VARIANT at all) has one run and a NULL variant.
 *
 * Results are TAP version 13 with a plan. A failed EXPECT prints both values and goes on. A failed
 * ASSERT ends the test there and then, however deep in calls, as TEST_SKIP does. A test that
 * outlives its time fails. What isolates tests from each other is the back end's affair:
 *
 *     io/base/test.c                    a process for each test, killed when its time is up
 *     guest-tests/lib/harness-serial.c  no isolation; TAP on the serial port, time from the TSC
 */
#ifndef GUEST_TESTS_HARNESS_HARNESS_H
#define GUEST_TESTS_HARNESS_HARNESS_H

#include <stdbool.h>
#include <stddef.h>

/* An attribute that every test function carries; the C layers set one for clang's analysis. */
#ifndef TEST_FUNCTION
#define TEST_FUNCTION
#endif

typedef struct TestVariant {
    const char *name;
    const void *data;
    struct TestVariant *next;
} TestVariant;

typedef struct TestFixture {
    const char *name;
    TestVariant *first_variant, *last_variant;
} TestFixture;

typedef struct TestCase {
    const char *group;
    const char *sentence;
    void (*run)(const void *variant);
    void (*finish)(const void *variant); /* NULL: nothing to tear down */
    TestFixture *fixture;                /* NULL: a plain TEST */
    unsigned timeout_s;                  /* 0: the back end's */
    struct TestCase *next;
} TestCase;

void test_register(TestCase *test);
void test_register_variant(TestFixture *fixture, TestVariant *variant);

/* test_fail - mark the running test failed; prints "# file:line: message" */
void test_fail(const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* test_fail_abort - the same, and end the test */
void test_fail_abort(const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 3, 4), noreturn));
/* test_skip - end the test as skipped, with the reason */
void test_skip(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
/* test_has_failed - whether the running test has failed already */
bool test_has_failed(void);
bool test_strings_equal(const char *a, const char *b);

/* --- tests --- */

#define TEST(group, sentence) TEST_TIMEOUT(group, sentence, 0)
#define TEST_TIMEOUT(group, sentence, seconds)                                                     \
    static TEST_FUNCTION void test_##group##_##sentence(void);                                     \
    static TEST_FUNCTION void test_run_##group##_##sentence(const void *variant)                   \
    {                                                                                              \
        (void)variant;                                                                             \
        test_##group##_##sentence();                                                               \
    }                                                                                              \
    TEST_REGISTER_(group, sentence, NULL, NULL, seconds)                                           \
    static void test_##group##_##sentence(void)

#define TEST_REGISTER_(group, sentence, finish, fixture, seconds)                                  \
    static TestCase test_case_##group##_##sentence = {                                             \
        #group, #sentence, test_run_##group##_##sentence, finish, fixture, seconds, NULL           \
    };                                                                                             \
    static void __attribute__((constructor)) test_register_##group##_##sentence(void)              \
    {                                                                                              \
        test_register(&test_case_##group##_##sentence);                                            \
    }

/* --- fixtures --- */

#define FIXTURE(fixture)                                                                           \
    struct test_variant_of_##fixture;                                                              \
    struct test_fixture_##fixture;                                                                 \
    static TestFixture test_fixture_of_##fixture = { #fixture, NULL, NULL };                       \
    struct test_fixture_##fixture
#define FIXTURE_VARIANT(fixture) struct test_variant_of_##fixture
#define FIXTURE_ARGUMENTS_(fixture)                                                                \
    struct test_fixture_##fixture *self __attribute__((unused)),                                   \
        const struct test_variant_of_##fixture *variant __attribute__((unused))
#define FIXTURE_SETUP(fixture)                                                                     \
    static TEST_FUNCTION void test_setup_##fixture(FIXTURE_ARGUMENTS_(fixture))
#define FIXTURE_TEARDOWN(fixture)                                                                  \
    static TEST_FUNCTION void test_teardown_##fixture(FIXTURE_ARGUMENTS_(fixture))
#define FIXTURE_VARIANT_ADD(fixture, variant)                                                      \
    static const struct test_variant_of_##fixture test_data_##fixture##_##variant;                 \
    static TestVariant test_variant_##fixture##_##variant = { #variant,                            \
                                                              &test_data_##fixture##_##variant,    \
                                                              NULL };                              \
    static void __attribute__((constructor)) test_add_##fixture##_##variant(void)                  \
    {                                                                                              \
        test_register_variant(&test_fixture_of_##fixture, &test_variant_##fixture##_##variant);    \
    }                                                                                              \
    static const struct test_variant_of_##fixture test_data_##fixture##_##variant =

/* A test whose set-up fails has no body; it is torn down all the same. */
#define TEST_F(fixture, sentence) TEST_F_TIMEOUT(fixture, sentence, 0)
#define TEST_F_TIMEOUT(fixture, sentence, seconds)                                                 \
    static TEST_FUNCTION void test_##fixture##_##sentence(FIXTURE_ARGUMENTS_(fixture));            \
    static struct test_fixture_##fixture test_self_##fixture##_##sentence;                         \
    static TEST_FUNCTION void test_run_##fixture##_##sentence(const void *variant)                 \
    {                                                                                              \
        struct test_fixture_##fixture *self = &test_self_##fixture##_##sentence;                   \
        *self = (struct test_fixture_##fixture){ 0 };                                              \
        test_setup_##fixture(self, variant);                                                       \
        if (!test_has_failed()) {                                                                  \
            test_##fixture##_##sentence(self, variant);                                            \
        }                                                                                          \
    }                                                                                              \
    static TEST_FUNCTION void test_finish_##fixture##_##sentence(const void *variant)              \
    {                                                                                              \
        test_teardown_##fixture(&test_self_##fixture##_##sentence, variant);                       \
    }                                                                                              \
    TEST_REGISTER_(fixture, sentence, test_finish_##fixture##_##sentence,                          \
                   &test_fixture_of_##fixture, seconds)                                            \
    static void test_##fixture##_##sentence(FIXTURE_ARGUMENTS_(fixture))

/* --- what a test says --- */

#define TEST_SKIP(...) test_skip(__VA_ARGS__)
#define TEST_SKIP_IF(cond, ...)                                                                    \
    do {                                                                                           \
        if (cond) {                                                                                \
            test_skip(__VA_ARGS__);                                                                \
        }                                                                                          \
    } while (0)
#define TEST_FAIL(...) test_fail_abort(__FILE__, __LINE__, __VA_ARGS__)

#define TEST_COMPARE_(fail, a, op, b)                                                              \
    do {                                                                                           \
        __typeof__(1 ? (a) : (a)) va_ = (a); /* not an array, a bit-field or qualified */          \
        __typeof__(1 ? (b) : (b)) vb_ = (b);                                                       \
        if (!(va_ op vb_)) {                                                                       \
            fail(__FILE__, __LINE__, "%s %s %s: left is %lld (0x%llx), right is %lld (0x%llx)",    \
                 #a, #op, #b, (long long)va_, (unsigned long long)va_, (long long)vb_,             \
                 (unsigned long long)vb_);                                                         \
        }                                                                                          \
    } while (0)
#define TEST_TRUE_(fail, cond)                                                                     \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fail(__FILE__, __LINE__, "%s is false", #cond);                                        \
        }                                                                                          \
    } while (0)
#define TEST_STR_(fail, a, b)                                                                      \
    do {                                                                                           \
        const char *sa_ = (a), *sb_ = (b);                                                         \
        if (!test_strings_equal(sa_, sb_)) {                                                       \
            fail(__FILE__, __LINE__, "%s == %s: left is \"%s\", right is \"%s\"", #a, #b,          \
                 sa_ ? sa_ : "(null)", sb_ ? sb_ : "(null)");                                      \
        }                                                                                          \
    } while (0)

#define EXPECT_EQ(a, b)    TEST_COMPARE_(test_fail, a, ==, b)
#define EXPECT_NE(a, b)    TEST_COMPARE_(test_fail, a, !=, b)
#define EXPECT_LT(a, b)    TEST_COMPARE_(test_fail, a, <, b)
#define EXPECT_LE(a, b)    TEST_COMPARE_(test_fail, a, <=, b)
#define EXPECT_GT(a, b)    TEST_COMPARE_(test_fail, a, >, b)
#define EXPECT_GE(a, b)    TEST_COMPARE_(test_fail, a, >=, b)
#define EXPECT_TRUE(c)     TEST_TRUE_(test_fail, c)
#define EXPECT_FALSE(c)    TEST_TRUE_(test_fail, !(c))
#define EXPECT_STREQ(a, b) TEST_STR_(test_fail, a, b)
#define ASSERT_EQ(a, b)    TEST_COMPARE_(test_fail_abort, a, ==, b)
#define ASSERT_NE(a, b)    TEST_COMPARE_(test_fail_abort, a, !=, b)
#define ASSERT_LT(a, b)    TEST_COMPARE_(test_fail_abort, a, <, b)
#define ASSERT_LE(a, b)    TEST_COMPARE_(test_fail_abort, a, <=, b)
#define ASSERT_GT(a, b)    TEST_COMPARE_(test_fail_abort, a, >, b)
#define ASSERT_GE(a, b)    TEST_COMPARE_(test_fail_abort, a, >=, b)
#define ASSERT_TRUE(c)     TEST_TRUE_(test_fail_abort, c)
#define ASSERT_FALSE(c)    TEST_TRUE_(test_fail_abort, !(c))
#define ASSERT_STREQ(a, b) TEST_STR_(test_fail_abort, a, b)

#endif
