/* Calls the runtime of openmp.c as the code that clang makes does; prints nothing if all is right. */

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define OWN_OPENMP
#include "openmp.c"

enum { MOST = 1000, STATIC = 34, DYNAMIC = 35 };

static void check(int right, const char *what) {
    if (!right) printf("%s\n", what);
}

/* Counts what each iteration ran, in a loop of either kind, twice with a barrier between. */
static void region(int32_t *id, int32_t *bound, int *counts, int64_t *n, int64_t *chunk, int *threads) {
    int32_t last;
    int64_t lower, upper, stride;
    (void)bound;
    __atomic_fetch_add(&threads[omp_get_thread_num()], 1, __ATOMIC_RELAXED);
    for (int round = 0; round < 2; round++) {
        if (*chunk) {
            __kmpc_dispatch_init_8(0, *id, DYNAMIC, 0, *n - 1, 1, *chunk);
            while (__kmpc_dispatch_next_8(0, *id, &last, &lower, &upper, &stride))
                for (int64_t i = lower; i <= upper; i++) __atomic_fetch_add(&counts[i], 1, __ATOMIC_RELAXED);
        } else {
            lower = 0, upper = *n - 1, stride = 1;
            __kmpc_for_static_init_8(0, *id, STATIC, &last, &lower, &upper, &stride, 1, 1);
            if (upper > *n - 1) upper = *n - 1;
            for (int64_t i = lower; i <= upper; i++) __atomic_fetch_add(&counts[i], 1, __ATOMIC_RELAXED);
            __kmpc_for_static_fini(0, *id);
        }
        __kmpc_barrier(0, *id);
        for (int64_t i = 0; i < *n; i++)
            check(__atomic_load_n(&counts[i], __ATOMIC_RELAXED) == round + 1, "an iteration was left out or repeated");
        __kmpc_barrier(0, *id);
    }
}

/* Returns how many threads took part. */
static int run(int wanted, int64_t n, int64_t chunk) {
    int counts[MOST] = {0}, threads[THREADS] = {0}, all = 0;
    __kmpc_push_num_threads(0, __kmpc_global_thread_num(0), wanted);
    __kmpc_fork_call(0, 4, (Task *)region, counts, &n, &chunk, threads);
    for (int i = 0; i < THREADS; i++) {
        check(threads[i] <= 1, "two threads have the same number");
        check(i < wanted || !threads[i], "a thread has too high a number");
        all += threads[i];
    }
    return all;
}

static void *repeat(void *unused) {
    for (int i = 0; i < 200; i++) run(3, 17 + i, i % 3);
    return unused;
}

int main(void) {
    for (int threads = 1; threads <= 6; threads++)
        for (int64_t n = 1; n < 40; n += n < 9 ? 1 : 10)
            for (int64_t chunk = 0; chunk < 4; chunk++) check(run(threads, n, chunk) == threads, "not all threads took part");
    pthread_t others[3];
    for (int i = 0; i < 3; i++) pthread_create(&others[i], 0, repeat, 0);
    repeat(0);
    for (int i = 0; i < 3; i++) pthread_join(others[i], 0);
    const pid_t child = fork();
    if (!child) {
        alarm(60);
        check(run(4, 100, 2) == 4, "not all threads took part after a fork");
        exit(0);
    }
    int status = 1;
    waitpid(child, &status, 0);
    check(status == 0, "a region does not end after a fork");
    return 0;
}
