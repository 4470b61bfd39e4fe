/*
 * co-fn-analysis.c - what clang's thread safety analysis says of coroutine functions
 *
 * Only compiled, with -Wthread-safety -Werror -Xclang -verify: the compiler fails the test unless
 * it gives exactly the errors that the comments below expect.
 */
#include "io/co/coroutine.h"

co_fn int wait_for_something(void);
no_co_fn void block_the_thread(void);

/* An entry function that yields is a co_fn; giving it to co_create() is silent. */
static co_fn void entry(void *opaque)
{
    if (wait_for_something() == 0) {
        co_yield();
    }
}

Coroutine *create(void);
Coroutine *create(void)
{
    return co_create(entry, NULL);
}

/* So is one that does not yield, and any function that has checked where it is. */
static void plain_entry(void *opaque)
{
    assert_in_coroutine();
    co_yield();
}

Coroutine *create_plain(void);
Coroutine *create_plain(void)
{
    return co_create(plain_entry, NULL);
}

/* Both kinds may enter another coroutine. */
static co_fn void nest(void *opaque)
{
    co_enter(opaque);
}

Coroutine *create_nested(void);
Coroutine *create_nested(void)
{
    Coroutine *co = co_create(entry, NULL);

    if (co) {
        co_enter(co);
    }
    return co_create(nest, co);
}

void plain(void);
void plain(void)
{
    co_yield();           /* expected-error {{requires holding role 'tsa_role_coroutine'}} */
    wait_for_something(); /* expected-error {{requires holding role 'tsa_role_coroutine'}} */
    entry(NULL);          /* expected-error {{requires holding role 'tsa_role_coroutine'}} */
}

co_fn void blocking(void);
co_fn void blocking(void)
{
    block_the_thread(); /* expected-error {{while role 'tsa_role_coroutine' is held}} */
}
